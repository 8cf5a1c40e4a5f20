"""Leases: one worker for a connection at a time, in order, and taken over when it is gone."""

import json
from datetime import datetime, timedelta

import pytest
from sqlalchemy import text

from gateway.store import deliveries, executions, work
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.executions import NewRequest
from gateway.store.work import LeaseLost, PendingUpdate, Postponement, Settlement
from tests.store.make import NOW, A, B, C, arrival, connection, move

LATER = NOW + timedelta(seconds=60)


def claim(database: Database, owner: str, now: datetime = NOW) -> str | None:
    """Claim as a worker does."""
    with database.writing() as transaction:
        return Claims(process="p1").claim(
            transaction, owner=owner, now=now, until=now + timedelta(seconds=60)
        )


def push(database: Database, *moves: tuple[str, str], connection_id: str = "c1") -> None:
    """Record pushes."""
    with database.writing() as transaction:
        deliveries.record(transaction, [arrival(move(*one), connection=connection_id) for one in moves])


def pending(database: Database, connection_id: str = "c1") -> list[PendingUpdate]:
    """Return what waits."""
    with database.reading() as transaction:
        return work.pending(transaction, connection_id, limit=10)


def request(number: int = 1) -> NewRequest:
    """Return an execution request."""
    return NewRequest(
        id=f"request-{number}",
        connection="c1",
        delivery=DELIVERY,
        project="digits",
        trigger="train@main",
        target="train",
        subject="acme/digits",
        body=b"{}",
    )


DELIVERY = "the-delivery"


def test_there_is_nothing_to_claim_without_pushes(database: Database) -> None:
    """A connection alone is no work."""
    connection(database)
    assert claim(database, "w1") is None


def test_a_connection_is_worked_on_by_one_worker(database: Database) -> None:
    """While the lease lasts nobody else gets it."""
    connection(database)
    push(database, (A, B))
    assert claim(database, "w1") == "c1"
    assert claim(database, "w2") is None


def test_an_expired_lease_is_taken_over(database: Database) -> None:
    """A worker that died holds nothing up for longer than its lease, and can record nothing afterwards."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    assert claim(database, "w2", NOW + timedelta(seconds=61)) == "c1"
    [update] = pending(database)
    with pytest.raises(LeaseLost), database.writing() as transaction:
        work.settle(
            transaction, "c1", [Settlement(update=update, state="planned", reason="")], owner="w1", now=NOW
        )
    assert len(pending(database)) == 1


def test_updates_come_in_order_of_arrival(database: Database) -> None:
    """What was pushed first is worked on first."""
    connection(database)
    push(database, (A, B), (B, C), (C, A))
    assert [(update.before, update.after) for update in pending(database)] == [(A, B), (B, C), (C, A)]


def test_settling_fills_the_outbox_in_one_transaction(database: Database) -> None:
    """The update ends and its request waits, or neither."""
    connection(database)
    with database.writing() as transaction:
        deliveries.record(transaction, [arrival(move(A, B), id=DELIVERY)])
    claim(database, "w1")
    [update] = pending(database)
    end = Settlement(update=update, state="planned", reason="1 request", requests=(request(),))
    for _ in range(2):
        with database.writing() as transaction:
            work.settle(transaction, "c1", [end], owner="w1", now=NOW)
    with database.reading() as transaction:
        waiting = executions.pending(transaction, limit=10, without=())
    assert [stored.id for stored in waiting] == ["request-1"]
    assert pending(database) == []


def test_a_postponed_connection_waits_and_says_why(database: Database) -> None:
    """It is not claimed before its time, and its deliveries tell the reason."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    with database.writing() as transaction:
        updates = work.pending(transaction, "c1", limit=10)
        work.postpone(transaction, "c1", updates, owner="w1", due_at=LATER, reason="remote down")
        assert work.attempts(transaction, "c1") == 1
    assert claim(database, "w1", LATER - timedelta(seconds=1)) is None
    assert claim(database, "w1", LATER) == "c1"
    with database.reading() as transaction:
        [delivery] = deliveries.page(transaction, connection="c1", verdict=None, before=None, limit=1)
    assert delivery.updates[0].reason == "remote down"


def test_what_is_replayed_is_pending_as_if_it_had_just_come(database: Database) -> None:
    """How it had ended before is kept as an attempt, however often it is replayed."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    [update] = pending(database)
    told = [{"trigger": "t", "matched": False, "reason": "no"}]
    with database.writing() as transaction:
        settled = Settlement(update=update, state="planned", reason="0 execution requests", verdicts=told)
        work.settle(transaction, "c1", [settled], owner="w1", now=NOW)
        work.replay(transaction, update.delivery, now=LATER)
        [again] = deliveries.get(transaction, update.delivery).updates
    assert (again.state, again.reason, again.settled_at, again.verdicts) == ("pending", None, None, ())
    [first] = again.attempts
    assert (first.state, first.reason, first.settled_at) == ("planned", "0 execution requests", NOW)
    assert (list(first.verdicts), first.replayed_at) == (told, LATER)
    with database.writing() as transaction:
        settled = Settlement(update=update, state="gone", reason="it is gone")
        work.settle(transaction, "c1", [settled], owner="w1", now=LATER)
        work.replay(transaction, update.delivery, now=LATER)
        [third] = deliveries.get(transaction, update.delivery).updates
    assert [attempt.reason for attempt in third.attempts] == ["0 execution requests", "it is gone"]


ODD = "caf\udce9 and half a pair \ud83d and \0"
SHOWN = r"caf\xe9 and half a pair \ud83d and \x00"


def test_text_that_no_database_takes_is_escaped_where_it_is_kept(database: Database) -> None:
    """A file name that is not UTF-8 may be in a reason or a verdict; its update ends all the same."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    [update] = pending(database)
    verdicts = [{"trigger": "t", "matched": True, "reason": ODD, "failure": None}]
    with database.writing() as transaction:
        work.tell(transaction, [update], ODD)
        told = deliveries.get(transaction, update.delivery).updates[0].reason
        late = Postponement(update=update, due_at=LATER, reason=ODD)
        work.settle(transaction, "c1", [], owner="w1", now=NOW, postponed=[late])
        put_off = deliveries.get(transaction, update.delivery).updates[0].reason
        settled = Settlement(update=update, state="failed", reason=ODD, verdicts=verdicts)
        work.settle(transaction, "c1", [settled], owner="w1", now=NOW)
        [found] = deliveries.get(transaction, update.delivery).updates
    assert (told, put_off, found.reason) == (SHOWN, SHOWN, SHOWN)
    assert found.verdicts == [{**verdicts[0], "reason": SHOWN}]


def test_text_that_was_kept_before_it_was_escaped_is_shown(database: Database) -> None:
    """Rows of earlier versions may hold half a pair of surrogates, which no answer could."""
    connection(database)
    push(database, (A, B))
    kept = json.dumps([{"trigger": "t", "matched": True, "reason": "caf\udce9"}])
    with database.writing() as transaction:
        transaction.execute(text("UPDATE ref_updates SET verdicts = :kept"), {"kept": kept})
        [delivery] = deliveries.page(transaction, connection="c1", verdict=None, before=None, limit=1)
    assert delivery.updates[0].verdicts[0]["reason"] == r"caf\xe9"
