"""Leases: one worker for a connection at a time, in order, and taken over when it is gone."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import sqlalchemy

from gateway.store import accept, deliveries, events, executions, ready_queue, work_queue
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.events import NewEvent
from gateway.store.tables import leases, update_attempts
from gateway.store.work_queue import LeaseLost, Postponement, Settlement
from testing.records import NOW, A, B, C, arrival, connection, move, rows_of_others
from tests.store.work import LATER, claim, pending, push, request, settle


def event(name: str, delivery: str) -> NewEvent:
    """Return an event."""
    return NewEvent(
        id=name, connection="c1", delivery=delivery, name="push.fetched", project="p", subject="", body=b"{}"
    )


def test_there_is_nothing_to_claim_without_pushes(database: Database) -> None:
    """A connection without pushes is no work."""
    connection(database)
    assert claim(database, "w1") is None


def test_a_connection_is_worked_on_by_one_worker(database: Database) -> None:
    """During the lease no other worker gets it."""
    connection(database)
    push(database, (A, B))
    assert claim(database, "w1") == "c1"
    assert claim(database, "w2") is None


def test_an_expired_lease_is_taken_over(database: Database) -> None:
    """A dead worker blocks a connection only for its lease, and can record nothing afterwards."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    assert claim(database, "w2", NOW + timedelta(seconds=61)) == "c1"
    [update] = pending(database)
    with pytest.raises(LeaseLost), database.writing() as conn:
        work_queue.settle(
            conn, "c1", [Settlement(update=update, state="planned", reason="")], owner="w1", now=NOW
        )
    assert len(pending(database)) == 1


def test_updates_come_in_order_of_arrival(database: Database) -> None:
    """The first push is processed first."""
    connection(database)
    push(database, (A, B), (B, C), (C, A))
    assert [(update.before, update.after) for update in pending(database)] == [(A, B), (B, C), (C, A)]


def test_a_postponed_connection_waits_and_says_why(database: Database) -> None:
    """It is not claimed before its time, and its deliveries show the reason."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    with database.writing() as conn:
        updates = work_queue.pending(conn, "c1", limit=10)
        work_queue.postpone(conn, "c1", updates, owner="w1", due_at=LATER, reason="remote down")
        assert work_queue.attempts(conn, "c1") == 1
    assert claim(database, "w1", LATER - timedelta(seconds=1)) is None
    assert claim(database, "w1", LATER) == "c1"
    with database.reading() as conn:
        [delivery] = deliveries.page(conn, connection="c1", verdict=None, before=None, limit=1)
    assert delivery.updates[0].reason == "remote down"


def test_what_is_replayed_is_pending_as_if_it_had_just_come(database: Database) -> None:
    """Its earlier result is kept as an attempt, however often it is replayed."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    [update] = pending(database)
    verdicts = [{"trigger": "t", "matched": False, "reason": "no"}]
    with database.writing() as conn:
        settled = Settlement(update=update, state="planned", reason="0 execution requests", verdicts=verdicts)
        work_queue.settle(conn, "c1", [settled], owner="w1", now=NOW)
        work_queue.replay(conn, update.delivery, now=LATER)
        [again] = deliveries.get(conn, update.delivery).updates
    assert (again.state, again.reason, again.settled_at, again.verdicts) == ("pending", None, None, ())
    [first] = again.attempts
    assert (first.state, first.reason, first.settled_at) == ("planned", "0 execution requests", NOW)
    assert (list(first.verdicts), first.replayed_at) == (verdicts, LATER)
    with database.writing() as conn:
        settled = Settlement(update=update, state="gone", reason="it is gone")
        work_queue.settle(conn, "c1", [settled], owner="w1", now=LATER)
        work_queue.replay(conn, update.delivery, now=LATER)
        [third] = deliveries.get(conn, update.delivery).updates
    assert [attempt.reason for attempt in third.attempts] == ["0 execution requests", "it is gone"]
    with database.reading() as conn:
        numbers = conn.execute(update_attempts.select()).all()
    assert sorted(row.number for row in numbers) == [1, 2]


def test_a_reader_gets_as_many_updates_as_asked_for_but_for_some_refs(database: Database) -> None:
    """In order of arrival: a storm is read in parts, without a ref that is being processed."""
    connection(database)
    moves = [move(A, B), move(A, B, "refs/heads/topic"), move(B, C)]
    with database.writing() as conn:
        accept.record(conn, [arrival(one) for one in moves])
        first = work_queue.pending(conn, "c1", limit=2)
        assert [one.ref for one in first] == ["refs/heads/main", "refs/heads/topic"]
        others = work_queue.pending(conn, "c1", limit=2, without=["refs/heads/main"])
    assert [one.ref for one in others] == ["refs/heads/topic"]


def test_what_one_push_is_put_off_for_holds_back_its_own_ref_only(database: Database) -> None:
    """Until it is due, or beyond the longest delay; its tries are counted."""
    connection(database)
    connection(database, "c2")
    moves = [move(A, B), move(A, B, "refs/heads/topic"), move(B, C)]
    with database.writing() as conn:
        accept.record(conn, [arrival(one) for one in moves])
        accept.record(conn, [arrival(move(A, B), connection="c2")])

    def ready(connection_id: str, now: datetime) -> list[int]:
        with database.reading() as conn:
            return [one.seq for one in work_queue.pending(conn, connection_id, limit=9, now=now)]

    first, topic, third = ready("c1", NOW)
    claim(database, "w1")
    settle(database, postponed=[Postponement(update=pending(database)[0], due_at=LATER, reason="away")])
    assert ready("c1", NOW) == ready("c1", LATER) == [topic]
    assert ready("c1", LATER + timedelta(seconds=1)) == [first, topic, third]
    assert ready("c1", LATER - ready_queue.MAX_DELAY) == [topic]
    assert ready("c1", LATER - ready_queue.MAX_DELAY - timedelta(seconds=1)) == [first, topic, third]
    assert len(ready("c2", NOW)) == 1
    assert [one.tries for one in pending(database)] == [1, 0, 0]
    settle(database, postponed=[Postponement(update=pending(database)[0], due_at=LATER, reason="away")])
    assert [one.tries for one in pending(database)] == [2, 0, 0]


def test_something_that_has_changed_makes_what_was_put_off_due(database: Database) -> None:
    """The connection and its updates, as after new credentials; nothing of other connections."""
    for name in ("c1", "c2"):
        connection(database, name)
        push(database, (A, B), connection_id=name)
    for name in ("w1", "w2"):
        claimed = claim(database, name)
        assert claimed is not None
        [update] = pending(database, claimed)
        late = Postponement(update=update, due_at=LATER, reason="away")
        with database.writing() as conn:
            work_queue.settle(conn, claimed, [], owner=name, now=NOW, postponed=[late])
            work_queue.postpone(conn, claimed, [update], owner=name, due_at=LATER, reason="away")
    assert claim(database, "w1") is None
    with database.writing() as conn:
        work_queue.make_due(conn, "c1", now=NOW)
    assert pending(database)[0].tries == 0
    assert pending(database, "c2")[0].tries == 1
    assert [claim(database, "w1"), claim(database, "w1")] == ["c1", None]


def test_what_never_failed_keeps_its_turn_when_something_changes(database: Database) -> None:
    """Changing a connection again and again does not move it to the end of the queue."""
    for name in ("c1", "c2"):
        connection(database, name, created_at=NOW if name == "c1" else LATER)
        push(database, (A, B), connection_id=name)
    with database.writing() as conn:
        work_queue.make_due(conn, "c1", now=LATER + timedelta(seconds=1))
    assert claim(database, "w1", LATER + timedelta(seconds=2)) == "c1"


def test_failures_count_in_a_row(database: Database) -> None:
    """Until a try succeeds; one interrupted by a shutdown does not count."""
    connection(database)
    push(database, (A, B))

    def attempts() -> int:
        with database.reading() as conn:
            return work_queue.attempts(conn, "c1")

    for count in (1, 2):
        claim(database, "w1")
        with database.writing() as conn:
            work_queue.postpone(conn, "c1", [], owner="w1", due_at=NOW, reason="away")
        assert attempts() == count
    claim(database, "w1")
    with database.writing() as conn:
        work_queue.give_back(conn, "c1", owner="w1", now=NOW + timedelta(seconds=1))
    assert attempts() == 2
    assert claim(database, "w2") is None
    assert claim(database, "w2", NOW + timedelta(seconds=1)) == "c1"
    with database.writing() as conn:
        work_queue.release(conn, "c1", owner="w2", now=NOW)
    assert attempts() == 0


def test_only_the_owner_gives_a_lease_back(database: Database) -> None:
    """A worker that has released the lease, or lost it, changes nothing."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    with database.writing() as conn:
        work_queue.release(conn, "c1", owner="w1", now=NOW)
    assert claim(database, "w2") == "c1"
    with database.writing() as conn:
        work_queue.give_back(conn, "c1", owner="w1", now=NOW)
    assert claim(database, "w3") is None


def test_a_replay_leaves_other_deliveries_and_connections_alone(database: Database) -> None:
    """It is tried at once, with a new count of tries, also if its connection was postponed."""
    sent = {"d1": ("c0", A, B), "d2": ("c1", A, B), "d3": ("c1", B, C), "d4": ("c2", A, B)}
    for name in ("c0", "c1", "c2"):
        connection(database, name)
    with database.writing() as conn:
        for name, (its, before, after) in sent.items():
            accept.record(conn, [arrival(move(before, after), id=name, connection=its)])
    for _ in range(3):
        claimed = claim(database, "w1")
        assert claimed is not None
        for update in pending(database, claimed):
            late = Postponement(update=update, due_at=LATER, reason="away")
            with database.writing() as conn:
                work_queue.settle(conn, claimed, [], owner="w1", now=NOW, postponed=[late])
                end = Settlement(update=update, state="failed", reason="no")
                work_queue.settle(conn, claimed, [end], owner="w1", now=NOW)
        with database.writing() as conn:
            work_queue.postpone(conn, claimed, [], owner="w1", due_at=LATER, reason="away")
    with database.writing() as conn:
        work_queue.replay(conn, "d2", now=NOW)
    assert [(one.delivery, one.tries) for one in pending(database)] == [("d2", 0)]
    assert pending(database, "c0") == pending(database, "c2") == []
    with database.writing() as conn:
        for name in ("c0", "c2"):
            accept.record(conn, [arrival(move(B, C), connection=name)])
        for name in ("d1", "d3", "d4"):
            work_queue.replay(conn, name, now=LATER)
        attempts = conn.execute(update_attempts.select()).all()
        due = {row.connection: row.due_at for row in conn.execute(leases.select())}
    assert [row.number for row in attempts] == [1] * 4
    assert due == dict.fromkeys(("c0", "c1", "c2"), LATER)


def test_a_replay_is_due_at_once_and_no_other_connection_is(database: Database) -> None:
    """Whichever delivery is replayed."""
    names = {"d0": "c2", "d1": "c1", "d2": "c0"}
    for delivery, name in names.items():
        connection(database, name, created_at=LATER)
        with database.writing() as conn:
            accept.record(conn, [arrival(move(A, B), id=delivery, connection=name)])
    with database.writing() as conn:
        work_queue.replay(conn, "d1", now=NOW)
        due = {row.connection: row.due_at for row in conn.execute(leases.select())}
    assert due == {"c0": LATER, "c1": NOW, "c2": LATER}


def test_the_loss_of_a_lease_is_reported_whoever_has_it(database: Database) -> None:
    """Also a worker whose name sorts later: only the owner of the lease may record."""
    connection(database)
    push(database, (A, B))
    claim(database, "w5")
    for name in ("w4", "w6"):
        with pytest.raises(LeaseLost), database.writing() as conn:
            work_queue.release(conn, "c1", owner=name, now=NOW)


def test_failures_are_those_of_the_connection_that_is_named(database: Database) -> None:
    """An unavailable repository delays no other."""
    for count, name in enumerate(("c0", "c1", "c2")):
        connection(database, name)
        push(database, (A, B), connection_id=name)
        for _ in range(count):
            assert claim(database, "w1") is not None
            with database.writing() as conn:
                work_queue.postpone(conn, name, [], owner="w1", due_at=NOW, reason="away")
        claim(database, "w1")
    with database.reading() as conn:
        assert [work_queue.attempts(conn, name) for name in ("c0", "c1", "c2")] == [0, 1, 2]


def test_an_update_comes_with_what_its_delivery_says(database: Database) -> None:
    """The pusher, the payload's repository, and the pull request, if any."""
    connection(database)
    push(database, (A, B))
    with database.writing() as conn:
        accept.record(conn, [arrival(move(B, C), repository=None, pusher=None)])
    first, second = pending(database)
    assert (first.repository, first.pusher, first.received_at) == ({"full_name": "acme/digits"}, "ada", NOW)
    assert (second.repository, second.pusher, second.pull_request) == ({}, None, None)
    assert (first.connection, first.kind, first.name, first.action) == ("c1", "branch", "main", "update")
    assert (first.generation, second.generation) == (1, 2)


def test_a_process_that_starts_again_frees_what_it_held(database: Database) -> None:
    """And nothing more: postponed connections stay so, and free ones are unchanged."""
    for name in ("c1", "c2"):
        connection(database, name)
        push(database, (A, B), connection_id=name)
    first = claim(database, "w1")
    second = claim(database, "w2")
    assert first is not None
    assert second is not None
    with database.writing() as conn:
        work_queue.postpone(conn, first, [], owner="w1", due_at=LATER, reason="away")
        work_queue.take_over_everything(conn, now=NOW)
        held = conn.execute(leases.select().order_by(leases.c.owner)).all()
    assert {row.owner for row in held} == {None}
    assert {row.connection: row.expires_at for row in held} == {first: None, second: NOW}
    assert [claim(database, "w3"), claim(database, "w3")] == [second, None]


def test_the_backlog_counts_what_the_broker_has_not(database: Database) -> None:
    """With the oldest of each kind, by its time of planning or recording."""
    connection(database)
    push(database, (A, B), (B, C))
    updates = pending(database)
    with database.writing() as conn:
        for number, (update, now) in enumerate(zip(updates, (NOW, LATER), strict=True)):
            new = replace(request(number), delivery=update.delivery)
            executions.add(conn, [new], ref_update=update.seq, now=now)
            events.add(conn, [event(f"e{number}", update.delivery)], now=now)
        backlog = work_queue.backlog(conn)
        assert (backlog.requests, backlog.events) == (2, 2)
        assert (backlog.oldest_request, backlog.oldest_event) == (NOW, NOW)
        executions.record(conn, published=["request-0"], refused={}, undeliverable={}, now=NOW)
        events.record(conn, published=["e0"], refused={}, undeliverable=())
        dropped = replace(request(2), delivery=updates[0].delivery)
        executions.add(conn, [dropped], ref_update=updates[0].seq, now=NOW)
        executions.drop(conn, dropped.id)
        backlog = work_queue.backlog(conn)
    assert (backlog.requests, backlog.events) == (1, 1)
    assert (backlog.oldest_request, backlog.oldest_event) == (LATER, LATER)


def _settle(conn: sqlalchemy.Connection) -> None:
    [update] = work_queue.pending(conn, "c1", limit=9)
    new = replace(request(), delivery=update.delivery)
    end = Settlement(update=update, state="planned", reason="", requests=(new,))
    work_queue.settle(conn, "c1", [end], owner="w", now=LATER)


def _put_off(conn: sqlalchemy.Connection) -> None:
    late = [
        Postponement(update=one, due_at=LATER, reason="") for one in work_queue.pending(conn, "c1", limit=9)
    ]
    work_queue.settle(conn, "c1", [], owner="w", now=LATER, postponed=late)


def _replay(conn: sqlalchemy.Connection) -> None:
    _settle(conn)
    [one] = deliveries.page(conn, connection="c1", verdict=None, before=None, limit=9)
    work_queue.replay(conn, one.id, now=LATER)


OF_ONE: dict[str, Callable[[sqlalchemy.Connection], object]] = {
    "renew": lambda t: work_queue.renew(t, "c1", owner="w", until=LATER + timedelta(hours=1)),
    "release": lambda t: work_queue.release(t, "c1", owner="w", now=LATER),
    "give back": lambda t: work_queue.give_back(t, "c1", owner="w", now=LATER),
    "postpone": lambda t: work_queue.postpone(t, "c1", (), owner="w", due_at=LATER, reason="away"),
    "progress": lambda t: work_queue.record_progress(t, work_queue.pending(t, "c1", limit=9), "fetching"),
    "settle": _settle,
    "put off": _put_off,
    "replay": _replay,
    "make due": lambda t: work_queue.make_due(t, "c1", now=LATER),
}


@pytest.mark.parametrize("what", OF_ONE)
def test_work_on_a_connection_leaves_all_others_alone(database: Database, what: str) -> None:
    """Those being processed, waiting and postponed, before it and after it."""
    for name in ("c0", "c1", "c2"):
        connection(database, name)
        push(database, (A, B), connection_id=name)
        with database.writing() as conn:
            mine = Claims(process="p1")
            assert mine.claim(conn, owner="w", now=NOW, until=LATER) == [name]
            late = [
                Postponement(update=one, due_at=NOW - timedelta(seconds=1), reason="away")
                for one in work_queue.pending(conn, name, limit=9)
            ]
            work_queue.settle(conn, name, [], owner="w", now=NOW, postponed=late)
            work_queue.postpone(conn, name, (), owner="w", due_at=NOW, reason="away")
            assert mine.claim(conn, owner="w", now=NOW, until=LATER) == [name]
    with database.writing() as conn:
        before = rows_of_others(conn, "c1"), rows_of_others(conn, "")
        OF_ONE[what](conn)
        assert rows_of_others(conn, "c1") == before[0]
        assert rows_of_others(conn, "") != before[1]
