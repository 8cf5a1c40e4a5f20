"""What has happened since it was last told: results of runs, and requests that never ran."""

import asyncio
from typing import Any

from gateway.store import executions, notification_states, runs
from gateway.store.database import Database
from gateway.store.notification_states import MAX_RESULTS, Observed, State, Told, key_of
from gateway.store.outbox import Outbox
from gateway.store.work_queue import Settlement
from testing.records import NOW, A, B, C, connection, request
from tests.store.requests import push
from tests.store.test_runs import record as report_all
from tests.store.test_runs import report
from tests.store.work import claim, pending, settle

NOTHING = Told(begun=(), ended=(), bodies={})
LETTERS = State(key=key_of("dead-letters"), what="dead-letters", connection=None, position=3, since=NOW)


def begin(database: Database, *states: State) -> int:
    """Take what is the case as told; return the cursor."""
    with database.writing() as conn:
        notification_states.begin(conn, states, now=NOW)
        cursor = notification_states.cursor(conn)
    assert cursor is not None
    return cursor


def observe(database: Database, after: int) -> Observed:
    """Return what has happened."""
    with database.reading() as conn:
        return notification_states.observe(conn, after)


def record(database: Database, observed: Observed, told: Told = NOTHING) -> bool:
    """Store what was told."""
    with database.writing() as conn:
        return notification_states.record(conn, observed, told, now=NOW)


def shown(observed: Observed) -> list[tuple[Any, ...]]:
    """Return the results, as far as these tests expect them."""
    return [
        (one.execution, one.trigger, one.state, one.reason, one.name, one.commit) for one in observed.results
    ]


def test_results_are_observed_once_in_the_order_in_which_they_came(two_moves: Database) -> None:
    """Those before the first observation were never to be told, nor is what has not ended."""
    report_all(two_moves, report("d1-a", "failed", 1, summary="old"))
    cursor = begin(two_moves)
    assert shown(observe(two_moves, cursor)) == []
    report_all(two_moves, report("d2-b", "failed", 1, summary="x" * 5000), report("d1-b", "running", 1))
    report_all(two_moves, report("d1-b", "succeeded", 2), report("d2-a", "cancelled", 1))
    observed = observe(two_moves, cursor)
    assert shown(observed) == [
        ("d2-b", "b", "failed", "x" * 1000, "main", C),
        ("d1-b", "b", "succeeded", None, "main", B),
    ]
    assert [one.position for one in observed.results] == [2, 1]
    assert (observed.results[0].connection_name, observed.results[0].project) == ("acme/digits", "digits")
    assert not observed.is_full
    assert record(two_moves, observed)
    # Another process has read the same, and comes too late.
    assert not record(two_moves, observed)
    assert shown(observe(two_moves, observed.next_cursor)) == []


def test_states_begin_change_and_end_with_the_cursor(two_moves: Database) -> None:
    """Together, so that nothing is told twice after a crash, and nothing is lost."""
    cursor = begin(two_moves, LETTERS)
    observed = observe(two_moves, cursor)
    assert observed.states == {LETTERS.key: LETTERS}
    run = State(key=key_of("run", "c1"), what="run", connection="c1", position=1, since=NOW)
    assert record(two_moves, observed, Told(begun=[run], ended=[LETTERS.key], bodies={"gone": [{}]}))
    with two_moves.writing() as conn:
        assert notification_states.all_states(conn) == {run.key: run}
        notification_states.forget(conn)
        assert notification_states.all_states(conn) == {}
        assert notification_states.cursor(conn) is None


def test_a_storm_of_results_is_observed_in_turns(two_moves: Database, monkeypatch: Any) -> None:
    """Each turn ends where the next begins."""
    assert MAX_RESULTS == 500
    monkeypatch.setattr(notification_states, "MAX_RESULTS", 2)
    cursor = begin(two_moves)
    report_all(two_moves, *(report(name, "failed", 1) for name in ("d1-a", "d1-b", "d2-a")))
    first = observe(two_moves, cursor)
    assert [one.execution for one in first.results] == ["d1-a", "d1-b"]
    assert first.is_full
    assert record(two_moves, first)
    second = observe(two_moves, first.next_cursor)
    assert [one.execution for one in second.results] == ["d2-a"]
    with two_moves.reading() as conn:
        assert second.next_cursor == runs.last_revision(conn)


def test_what_was_never_executed_is_observed_once(database: Database) -> None:
    """Triggers that could not be planned, ref updates that failed, and requests that the broker refuses."""
    connection(database)
    cursor = begin(database)
    push(database, "d1", A, B)
    push(database, "d2", B, C)
    claim(database, "w1")
    first, second = pending(database)
    verdicts: list[dict[str, Any]] = [
        {"trigger": "train", "failure": "there is no step train"},
        {"trigger": "train@main", "failure": "one of its tasks"},
        {"trigger": "test", "failure": None},
    ]
    planned = (request("request-1", delivery=first.delivery),)
    settle(
        database,
        Settlement(update=first, state="failed", reason="1 of 3", requests=planned, verdicts=verdicts),
        Settlement(update=second, state="failed", reason="no valohai.yaml"),
    )
    asyncio.run(Outbox(database).record(published=[], refused={}, undeliverable={"request-1": "too large"}))
    observed = observe(database, cursor)
    assert shown(observed) == [
        (None, "train", "failed", "there is no step train", "main", B),
        (None, None, "failed", "no valohai.yaml", "main", C),
        (None, "train@main", "failed", "too large", "main", B),
    ]
    with database.reading() as conn:
        assert executions.get(conn, "request-1").state == "undeliverable"
    assert record(database, observed)
    assert observe(database, observed.next_cursor).results == []
