"""The outbox of several processes on one PostgreSQL: one relays at a time."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from sqlalchemy import text

from gateway.store import accept, executions, work_queue
from gateway.store.database import Database
from gateway.store.outbox import Outbox
from testing.postgres import Postgres
from testing.records import NOW, A, arrival, connection, move, request
from testing.service import wait_for


@pytest.fixture
def databases(postgres: Postgres) -> Iterator[list[Database]]:
    """Return two processes' views of one database with one pending request."""
    url = postgres.database()
    with ExitStack() as stack:
        both = [stack.enter_context(closing(Database(url))) for _ in range(2)]
        both[0].migrate()
        connection(both[0])
        with both[0].writing() as conn:
            accept.record(conn, [arrival(move(None, A), id="d1")])
            [update] = work_queue.pending(conn, "c1", limit=1)
            executions.add(conn, [request("r1")], ref_update=update.seq, now=NOW)
        yield both


def taken(outbox: Outbox) -> list[str]:
    """Return the requests that a relay would publish now."""
    return [one.id for one in asyncio.run(outbox.pending(limit=10, without=())) or ()]


def end_leader(database: Database) -> None:
    """End the leader's connection, as a network failure would, unnoticed by the process."""
    # Wait for it: while the lock is held, the next attempt would find the first leader.
    end = text("SELECT pg_terminate_backend(pid, 60000) FROM pg_locks WHERE locktype = 'advisory'")
    with database.reading() as conn:
        ended = conn.execute(end).all()
    assert ended == [(True,)]


def test_one_relays_and_the_next_waits_for_its_last_batch(databases: list[Database]) -> None:
    """A new leader takes nothing at first: the earlier one may still be sending its batch."""
    first, second = (Outbox(database) for database in databases)
    assert taken(first) == []
    wait_for(lambda: taken(first) == ["r1"], "the first one leads")
    assert taken(second) == []
    end_leader(databases[1])
    assert taken(second) == []
    assert taken(first) == []
    wait_for(lambda: taken(second) == ["r1"], "the second one leads")
    assert taken(first) == []


def test_a_leader_that_comes_back_at_once_waits_as_well(databases: list[Database]) -> None:
    """Another one may have led in between."""
    outbox = Outbox(databases[0])
    wait_for(lambda: taken(outbox) == ["r1"], "it leads")
    end_leader(databases[1])
    assert taken(outbox) == []
    wait_for(lambda: taken(outbox) == ["r1"], "it leads again")


def test_a_refusal_that_is_late_leaves_what_another_has_published(databases: list[Database]) -> None:
    """Two may have tried; a published request needs no reason."""
    outbox = Outbox(databases[0])

    async def scenario() -> None:
        await outbox.record(published=["r1"], refused={}, undeliverable={})
        await outbox.record(published=[], refused={"r1": "no queue takes it"}, undeliverable={})

    asyncio.run(scenario())
    with databases[0].reading() as conn:
        kept = conn.execute(text("SELECT state, reason FROM executions")).one()
    assert tuple(kept) == ("published", None)
