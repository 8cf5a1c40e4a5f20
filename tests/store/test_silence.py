"""Silence: published requests that nobody accepts, and runs that are no longer reported."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.messages.execution_states import NO_REPORT, Run
from gateway.messages.execution_status import ReportedState
from gateway.store import connection_facts, executions, reruns, runs, silence, unaccepted, waiting_requests
from gateway.store.database import Database
from gateway.store.run_tables import unaccepted as table
from testing.records import NOW, A, B, connection
from tests.store.requests import LATEST, MAIN, end, plan, push, stored
from tests.store.test_runs import changes, record, report, run_of, shown

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def lose(database: Database, after: timedelta, *, limit: timedelta | None = DAY) -> Sequence[str]:
    """Give up what has been silent for too long."""
    with database.writing() as conn:
        is_due = silence.is_due(conn, limit=limit, now=NOW + after)
        lost = silence.end(conn, limit=limit, now=NOW + after)
        assert is_due == bool(lost)
    return lost


def waits(database: Database, after: timedelta) -> dict[str, str | None]:
    """Return the reasons of published requests, and None for those without."""
    with database.reading() as conn:
        explained = waiting_requests.explained(
            conn, list(stored(database).values()), has_broker=True, now=NOW + after
        )
    return {one.id: one.reason for one in explained if one.shown_state == "published"}


@pytest.mark.parametrize("state", ["accepted", "running"])
def test_a_run_that_is_no_longer_reported_is_lost(two_moves: Database, state: ReportedState) -> None:
    """After the limit, counted from the last report; what was reported stays, and followers see it."""
    end(two_moves, "d1-a", "published")
    record(two_moves, report("d1-a", state, 1, url="https://ml.example/1"))
    record(two_moves, report("d1-a", "running", 2), minutes=60)
    with two_moves.reading() as conn:
        before = runs.last_revision(conn)
    assert lose(two_moves, DAY) == []
    assert lose(two_moves, DAY + HOUR) == ["d1-a"]
    lost = run_of(two_moves, "d1-a")
    assert (lost.state, lost.sequence, lost.url) == ("lost", 2, "https://ml.example/1")
    assert (lost.reported_at, lost.lost_at) == (NOW + HOUR, NOW + DAY + HOUR)
    assert changes(two_moves, before) == ["d1-a"]
    assert lose(two_moves, 9 * DAY) == []


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "rejected"])
def test_what_has_ended_is_not_lost(two_moves: Database, state: ReportedState) -> None:
    """Nobody reports any more about it."""
    record(two_moves, report("d1-a", state, 1))
    assert lose(two_moves, 99 * DAY) == []


def test_a_later_report_about_a_lost_run_is_believed(two_moves: Database) -> None:
    """Silence proves nothing; a new silence counts from that report."""
    record(two_moves, report("d1-a", "running", 1))
    lose(two_moves, DAY)
    record(two_moves, report("d1-a", "running", 2), minutes=3 * 24 * 60)
    assert shown(two_moves)["d1-a"] == "running"
    assert lose(two_moves, 3 * DAY + HOUR) == []
    assert lose(two_moves, 4 * DAY) == ["d1-a"]
    record(two_moves, report("d1-a", "succeeded", 3))
    assert shown(two_moves)["d1-a"] == "succeeded"


def test_a_request_that_nobody_accepts_is_shown_and_is_lost(two_moves: Database) -> None:
    """From the first report about its project on; its runner may still come, with any sequence."""
    end(two_moves, "d1-a", "published")
    record(two_moves, report("d1-a", "succeeded", 1))
    end(two_moves, "d1-b", "published")
    minutes = timedelta(minutes=1)
    assert waits(two_moves, 14 * minutes) == {"d1-b": None}
    reason = f"no runner has accepted it since {NOW:%Y-%m-%d %H:%M} UTC"
    assert waits(two_moves, 15 * minutes) == {"d1-b": reason}
    assert lose(two_moves, DAY - minutes) == []
    assert lose(two_moves, DAY) == ["d1-b"]
    lost = run_of(two_moves, "d1-b")
    assert lost == Run(state="lost", sequence=NO_REPORT, reported_at=NOW + DAY, lost_at=NOW + DAY)
    record(two_moves, report("d1-b", "accepted", 0))
    assert shown(two_moves)["d1-b"] == "accepted"


def test_requests_of_a_project_whose_runners_never_report_are_not_lost(two_moves: Database) -> None:
    """Nothing is expected of them; reports about another project change nothing."""
    connection(two_moves, "c2", name="other", project="other")
    moved = push(two_moves, "d3", A, B, connection="c2", ref=MAIN)
    other = replace(LATEST, id="d3-a", delivery="d3", connection="c2", project="other")
    plan(two_moves, moved, other)
    for name in ("d1-a", "d3-a"):
        end(two_moves, name, "published")
    record(two_moves, report("d3-a", "succeeded", 1))
    end(two_moves, "d1-b", "published")
    assert waits(two_moves, 9 * DAY) == {"d1-a": None, "d1-b": None}
    assert lose(two_moves, 99 * DAY) == []


def test_a_request_that_was_accepted_before_its_confirm_is_not_expected(two_moves: Database) -> None:
    """A runner may be faster than the relay, and faster than another transaction of it."""
    record(two_moves, report("d1-a", "succeeded", 1), report("d1-b", "succeeded", 1))
    end(two_moves, "d1-a", "published")
    with two_moves.writing() as conn:
        conn.execute(
            table.insert().values(execution=stored(two_moves)["d1-b"].seq, connection="c1", published_at=NOW)
        )
        assert silence.is_due(conn, limit=DAY, now=NOW + DAY)
        assert silence.end(conn, limit=DAY, now=NOW + DAY) == []
        assert not silence.is_due(conn, limit=DAY, now=NOW + DAY)
    assert shown(two_moves)["d1-b"] == "succeeded"


def test_a_republished_request_is_expected_from_its_new_publication_on(two_moves: Database) -> None:
    """What was lost before is forgotten."""
    record(two_moves, report("d2-a", "succeeded", 1))
    end(two_moves, "d1-a", "published")
    lose(two_moves, DAY)
    with two_moves.writing() as conn:
        reruns.republish(conn, "d1-a", now=NOW + DAY)
        assert not silence.is_due(conn, limit=DAY, now=NOW + 9 * DAY)
        executions.record(conn, published=["d1-a"], refused={}, undeliverable={}, now=NOW + 2 * DAY)
    assert lose(two_moves, 2 * DAY + HOUR) == []
    assert lose(two_moves, 3 * DAY) == ["d1-a"]


def test_each_trigger_has_a_limit_of_its_own(database: Database) -> None:
    """Zero means never; the others have the setting's, and none if that has none."""
    connection(database)
    moved = push(database, "d1", A, B)
    limits = {"never": timedelta(), "hour": HOUR, "week": 7 * DAY, "setting": None, "first": None}
    requests = [
        replace(LATEST, id=name, delivery="d1", trigger=name, lost_after=limit)
        for name, limit in limits.items()
    ]
    plan(database, moved, *requests)
    record(database, report("first", "succeeded", 1), report("week"), report("never"))
    for name in ("hour", "setting"):
        end(database, name, "published")
    assert lose(database, HOUR, limit=None) == ["hour"]
    assert lose(database, 6 * DAY, limit=None) == []
    assert lose(database, 99 * DAY, limit=None) == ["week"]
    assert lose(database, 99 * DAY) == ["setting"]
    assert shown(database)["never"] == "running"


def test_many_are_given_up_in_several_transactions(
    two_moves: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest silent first is not promised; all are, in the end."""
    monkeypatch.setattr(silence, "MAX_AT_ONCE", 1)
    record(two_moves, report("d1-a", "succeeded"), report("d1-b"), report("d2-a"))
    end(two_moves, "d2-b", "published")
    found = [name for _ in range(2) for name in lose(two_moves, DAY)]
    assert sorted(found) == ["d1-b", "d2-a", "d2-b"]
    assert lose(two_moves, DAY) == []


def test_a_connection_has_since_when_no_runner_accepts_its_requests(two_moves: Database) -> None:
    """The oldest of them, once it has waited for a while."""
    record(two_moves, report("d1-a", "succeeded", 1))
    for minutes, name in enumerate(("d2-a", "d2-b")):
        with two_moves.writing() as conn:
            now = NOW + timedelta(minutes=minutes)
            executions.record(conn, published=[name], refused={}, undeliverable={}, now=now)
    known = connection(two_moves, "c2", name="other")
    with two_moves.reading() as conn:
        late = NOW + unaccepted.NOTICED_AFTER
        assert unaccepted.oldest(conn, ["c1", "c2"], before=NOW) == {"c1": NOW}
        assert unaccepted.oldest(conn, ["c1", "c2"], before=NOW - HOUR) == {}
        assert connection_facts.facts(conn, [known], now=late)["c2"].unaccepted_since is None
        of_first = replace(known, id="c1")
        assert connection_facts.facts(conn, [of_first], now=late)["c1"].unaccepted_since == NOW
    record(two_moves, report("d2-a"))
    with two_moves.reading() as conn:
        assert unaccepted.oldest(conn, ["c1"], before=NOW) == {}
