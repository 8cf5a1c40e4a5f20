"""Leading: one process at a time holds a lock of the server."""

import asyncio
from contextlib import closing

import pytest
from sqlalchemy import Connection, event

from gateway.errors import StoreUnavailable
from gateway.store.database import Database, Lock
from testing.postgres import end_all_connections, url_of
from testing.service import wait_for


def test_an_embedded_database_is_led_by_its_one_process(embedded: Database) -> None:
    """At once, whatever the required time of leading."""
    assert asyncio.run(embedded.is_leader(Lock.RELAY, for_seconds=3600)) is True
    with embedded.reading() as transaction:
        assert embedded.may_lead(transaction, Lock.RELAY)


def test_versions_agree_on_the_locks_of_a_server() -> None:
    """Both run during an upgrade: with different numbers two processes would lead."""
    assert {lock.name: lock.value for lock in Lock} == {
        "MIGRATION": 5074711,
        "RELAY": 5074712,
        "RETENTION": 5074713,
        "EVENTS": 5074714,
        "CLAIM": 5074715,
        "NAMES": 5074716,
        "QUEUE": 5074717,
        "REFUSALS": 5074718,
        "REDELIVERIES": 5074719,
        "RUNS": 5074720,
        "STATUSES": 5074721,
        "NOTIFICATIONS": 5074722,
    }


def test_one_process_leads_and_another_takes_over(server: Database) -> None:
    """It leads as long as it has the lock, and no other leads meanwhile."""

    async def is_leader(database: Database, seconds: float = 0.0) -> bool:
        return await database.is_leader(Lock.RELAY, for_seconds=seconds)

    async def run() -> None:
        # It has just begun to lead.
        assert not await is_leader(server, 0.5)
        assert await is_leader(server)
        assert await is_leader(server)
        assert not await is_leader(server, 3600)
        assert await is_leader(server, 1e-6)
        with closing(Database(url_of(server))) as other:
            assert not await is_leader(other)
            assert await other.is_leader(Lock.EVENTS)
            # The server ends the connection that holds the lock.
            await asyncio.to_thread(end_all_connections, url_of(server))
            assert await is_leader(other)
            assert not await is_leader(server)
            with server.reading() as mine, other.reading() as others:
                assert not server.may_lead(mine, Lock.RELAY)
                assert other.may_lead(others, Lock.RELAY)
                assert server.may_lead(mine, Lock.RETENTION)
        # The other process's database is closed, with its connection.
        await asyncio.to_thread(wait_for, lambda: asyncio.run(is_leader(server)), "the lock is free")
        # The lock is free: the process can lead again after its connection was lost.
        await asyncio.to_thread(end_all_connections, url_of(server))
        assert await is_leader(server)

    asyncio.run(run())


def test_a_lock_is_not_kept_by_a_connection_that_was_lost_meanwhile(server: Database) -> None:
    """It is unknown whether the server gave the lock: the connection is not used again."""
    lost: list[int] = []

    def lose(_connection: Connection, _cursor: object, statement: str, *_others: object) -> None:
        if "pg_try_advisory_lock" in statement and not lost:
            lost.append(end_all_connections(url_of(server)))

    event.listen(server.engine, "before_cursor_execute", lose)
    with pytest.raises(StoreUnavailable):
        asyncio.run(server.is_leader(Lock.RELAY))
    assert asyncio.run(server.is_leader(Lock.RELAY)) is True
