"""The outbox of events: filled by the transaction that ends a ref update, emptied by the relay."""

from collections.abc import Collection

import pytest

from gateway.store import deliveries, events, executions, work
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.events import NewEvent, StoredEvent
from gateway.store.work import LeaseLost, Settlement
from tests.store.make import NOW, A, B, C, arrival, connection, move


def event(name: str, connection_id: str = "c1") -> NewEvent:
    """Return an event."""
    return NewEvent(
        id=name,
        connection=connection_id,
        delivery="d1",
        name="push.fetched",
        project="digits",
        subject="acme/digits",
        body=b"{}",
    )


def settle(database: Database, *told: str, owner: str = "w1") -> None:
    """End each pending ref update of the connection, and tell one event of each."""
    with database.writing() as transaction:
        Claims(process="p").claim(transaction, owner="w1", now=NOW, until=NOW)
        updates = work.pending(transaction, "c1", limit=10)
        ends = [
            Settlement(update=update, state="planned", reason="", events=(event(name),))
            for update, name in zip(updates, told, strict=True)
        ]
        work.settle(transaction, "c1", ends, owner=owner, now=NOW)
        # Recorded once more, as by a worker that was taken over: they have ended already.
        work.settle(transaction, "c1", ends, owner=owner, now=NOW)


def pending(database: Database, without: Collection[str] = ()) -> list[StoredEvent]:
    """Return what waits."""
    with database.reading() as transaction:
        return events.pending(transaction, limit=10, without=without)


def test_an_event_is_written_with_the_end_that_it_tells_of(database: Database) -> None:
    """Once, in the order of the pushes, and it is no execution."""
    connection(database)
    with database.writing() as transaction:
        deliveries.record(transaction, [arrival(move(A, B)), arrival(move(B, C))])
    settle(database, "e1", "e2")
    assert [(one.id, one.settled_at, one.reason) for one in pending(database)] == [
        ("e1", NOW, None),
        ("e2", NOW, None),
    ]
    with database.reading() as transaction:
        assert executions.last_seq(transaction) == 0
        assert executions.pending(transaction, limit=10, without=()) == []
        backlog = work.backlog(transaction)
    assert (backlog.requests, backlog.events) == (0, 2)


def test_an_end_that_is_not_recorded_tells_nothing(database: Database) -> None:
    """Who has lost the lease has written no event either."""
    connection(database)
    with database.writing() as transaction:
        deliveries.record(transaction, [arrival(move(A, B))])
    with pytest.raises(LeaseLost):
        settle(database, "e1", owner="another")
    assert pending(database) == []


def test_an_event_is_forgotten_once_the_broker_has_it(database: Database) -> None:
    """One that was refused stays, with the reason."""
    connection(database)
    connection(database, "c2")
    with database.writing() as transaction:
        events.add(transaction, [event("e1"), event("e2"), event("e3", "c2")], now=NOW)
        events.record(transaction, published=["e1"], refused={"e2": "the queue is full"}, undeliverable=())
    assert [(one.id, one.reason) for one in pending(database)] == [("e2", "the queue is full"), ("e3", None)]
    assert [one.id for one in pending(database, without=["c1"])] == ["e3"]
