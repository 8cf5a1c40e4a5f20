"""The outbox of events: filled by the transaction that ends a ref update, emptied by the relay."""

import asyncio
from collections.abc import Collection
from contextlib import closing
from dataclasses import asdict

import pytest

from gateway.store import accept, events, executions, outages, work_queue
from gateway.store.claims import Claims
from gateway.store.database import Database, Lock
from gateway.store.events import EventOutbox, NewEvent, StoredEvent
from gateway.store.work_queue import LeaseLost, Settlement
from testing.postgres import Postgres
from testing.records import NOW, A, B, C, arrival, connection, move
from testing.service import wait_for


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


def settle(database: Database, *names: str, owner: str = "w1") -> None:
    """Settle each pending ref update of the connection, with one event each."""
    with database.writing() as conn:
        Claims(process="p").claim(conn, owner="w1", now=NOW, until=NOW)
        updates = work_queue.pending(conn, "c1", limit=10)
        ends = [
            Settlement(update=update, state="planned", reason="", events=(event(name),))
            for update, name in zip(updates, names, strict=True)
        ]
        work_queue.settle(conn, "c1", ends, owner=owner, now=NOW)
        # Recorded again, as by a worker that has lost its lease: they have ended already.
        work_queue.settle(conn, "c1", ends, owner=owner, now=NOW)


def pending(database: Database, without: Collection[str] = ()) -> list[StoredEvent]:
    """Return the pending events."""
    with database.reading() as conn:
        return events.pending(conn, limit=10, without=without)


def test_an_event_is_written_with_the_end_that_it_reports(database: Database) -> None:
    """Once, in the order of the pushes, and not as an execution."""
    connection(database)
    with database.writing() as conn:
        accept.record(conn, [arrival(move(A, B)), arrival(move(B, C))])
    settle(database, "e1", "e2")
    assert [(one.id, one.settled_at, one.reason) for one in pending(database)] == [
        ("e1", NOW, None),
        ("e2", NOW, None),
    ]
    with database.reading() as conn:
        assert executions.last_seq(conn) == 0
        assert executions.pending(conn, limit=10, without=()) == []
        backlog = work_queue.backlog(conn)
    assert (backlog.requests, backlog.events) == (0, 2)


def test_an_end_that_is_not_recorded_has_no_event(database: Database) -> None:
    """A worker that has lost the lease writes no event either."""
    connection(database)
    with database.writing() as conn:
        accept.record(conn, [arrival(move(A, B))])
    with pytest.raises(LeaseLost):
        settle(database, "e1", owner="another")
    assert pending(database) == []


def test_an_event_is_forgotten_once_the_broker_has_it(database: Database) -> None:
    """A refused event stays, with the reason."""
    connection(database)
    connection(database, "c2")
    with database.writing() as conn:
        events.add(conn, [event(f"e{number}") for number in range(3)] + [event("e3", "c2")], now=NOW)
        events.record(conn, published=["e1"], refused={"e2": "the queue is full"}, undeliverable=())
    found = [(one.id, one.reason) for one in pending(database)]
    assert found == [("e0", None), ("e2", "the queue is full"), ("e3", None)]
    assert [one.id for one in pending(database, without=["c1"])] == ["e3"]


def test_a_relay_gets_the_first_events_that_wait(database: Database) -> None:
    """Unchanged, in the order in which they are published."""
    for name in ("c1", "c2"):
        connection(database, name)
    with database.writing() as conn:
        for number in (3, 1, 2):
            events.add(conn, [event(f"e{number}", f"c{number % 2 + 1}")], now=NOW)
        events.add(conn, [], now=NOW)
        found = events.pending(conn, limit=2, without=())
        assert events.pending(conn, limit=1, without=["c2"])[0].id == "e2"
    assert found == [
        StoredEvent(**asdict(event(name, "c2")), seq=one.seq, settled_at=NOW)
        for name, one in zip(("e3", "e1"), found, strict=True)
    ]


def test_events_that_can_never_be_published_are_deleted(database: Database) -> None:
    """Like published events; a refusal belongs to one event, and no other changes."""
    connection(database)
    with database.writing() as conn:
        events.add(conn, [event(f"e{number}") for number in range(5)], now=NOW)
        events.record(conn, published=[], refused={"e2": "full"}, undeliverable=["e1"])
        events.record(conn, published=["e3"], refused={}, undeliverable=["e0"])
    assert [(one.id, one.reason) for one in pending(database)] == [("e2", "full"), ("e4", None)]


def test_the_outbox_of_one_process_is_read_and_emptied(database: Database) -> None:
    """As by the relay; the outage of events is recorded separately from that of requests."""
    connection(database)
    with database.writing() as conn:
        events.add(conn, [event("e1"), event("e2"), event("e3", "c1")], now=NOW)
    outbox = EventOutbox(database)

    def taken() -> list[str] | None:
        found = asyncio.run(outbox.pending(limit=2, without=()))
        return None if found is None else [one.id for one in found]

    wait_for(lambda: taken() == ["e1", "e2"], "this process leads")
    assert asyncio.run(outbox.pending(limit=2, without=["c1"])) == []
    asyncio.run(outbox.record(published=["e1"], refused={"e3": "full"}, undeliverable={"e2": "large"}))
    assert [(one.id, one.reason) for one in pending(database)] == [("e3", "full")]
    assert asyncio.run(outbox.record_outage("the broker is away")) is True
    with database.reading() as conn:
        assert [(one.what, one.reason) for one in outages.current(conn)] == [("event", "the broker is away")]
    assert asyncio.run(outbox.record_outage(None)) is True
    with database.reading() as conn:
        assert outages.current(conn) == []


def test_one_process_relays_events(postgres: Postgres) -> None:
    """The next one waits, as with requests, until the first one's last batch is over."""
    url = postgres.database()
    with closing(Database(url)) as first, closing(Database(url)) as second:
        first.migrate()
        outboxes = EventOutbox(first), EventOutbox(second)

        def taken(outbox: EventOutbox) -> list[StoredEvent] | None:
            return asyncio.run(outbox.pending(limit=1, without=()))

        assert taken(outboxes[0]) is None
        wait_for(lambda: taken(outboxes[0]) == [], "the first one leads")
        assert taken(outboxes[1]) is None
        # A relay of requests is independent.
        assert asyncio.run(second.is_leader(Lock.RELAY)) is True
