"""The webhook endpoint during outages behind it: timely answers, nothing half done, few log lines."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
import structlog

from gateway.errors import StoreUnavailable
from gateway.intake.connection_cache import ConnectionCache
from gateway.intake.group_commit import DeliveryWriter
from gateway.store.database import Database
from testing import records
from testing.postgres import Postgres
from testing.service import Service, wait_for
from tests.intake.local import KEYRING, asked, connect, scope

# The promise is 5 seconds, some providers give up after 10; a busy machine is slower.
PATIENCE = 15.0


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock of a writer on an SQLite database, as another program would."""
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_locked_database_is_503_in_time(tmp_path: Path) -> None:
    """From the first delivery on, also several at once; afterwards the same delivery is accepted as new."""
    with Service(tmp_path / "data", CONCURRENCY="1") as service:
        connection = service.connect("https://github.example/acme/digits.git")
        found: list[tuple[int, float]] = []

        def deliver(number: int) -> None:
            started = time.monotonic()
            status, _ = service.deliver(connection, b"{}", event="star", x_github_delivery=str(number))
            found.append((status, time.monotonic() - started))

        with locked(service.data / "pushgate.db"):
            threads = [threading.Thread(target=deliver, args=(number,)) for number in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert [status for status, _ in found] == [503] * 5
        assert max(seconds for _, seconds in found) < PATIENCE
        status, answer = service.deliver(connection, b"{}", event="star", x_github_delivery="0")
        assert (status, answer["verdict"]) == (202, "ignored")
        wait_for(
            lambda: [line for line in service.log() if line["event"] == "the database answers again"],
            "the end of the outage is logged",
        )
        logged = [line["event"] for line in service.log() if "the database" in line["event"]]
        assert logged.count("the database does not answer; work waits") == logged.count(
            "the database answers again"
        )


def test_a_locked_table_of_postgresql_is_503_in_time(tmp_path: Path, postgres: Postgres) -> None:
    """As during a schema change; a delivery written meanwhile is a duplicate when it is retried."""
    url = postgres.database()
    with Service(tmp_path / "data", DATABASE_URL=url, SECRET_KEY="s" * 32, CONCURRENCY="1") as service:
        connection = service.connect("https://github.example/acme/digits.git")
        with psycopg.connect(url) as other:
            other.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
            started = time.monotonic()
            status, _ = service.deliver(connection, b"{}", event="star", x_github_delivery="one")
            assert (status, time.monotonic() - started < PATIENCE) == (503, True)
        assert service.deliver(connection, b"{}", event="star", x_github_delivery="one")[0] == 202


def test_networks_let_nobody_in_whose_address_is_not_known(database: Database) -> None:
    """Such as over a Unix socket, or from a proxy without an address; the right address is accepted."""
    connect(database, networks=("192.0.2.0/24",))
    assert asked(database, scope(b"{}"))[0] == 202
    assert asked(database, scope(b"{}", client=None))[0] == 401
    assert asked(database, scope(b"{}", client=("198.51.100.1", 1)))[0] == 401
    assert asked(database, scope(b"{}"), trusted_proxies=1)[0] == 401


def test_a_bug_of_ours_is_a_reason_to_try_again(database: Database) -> None:
    """503 with Retry-After: a 500 would make providers drop the event, or the webhook."""
    connect(database)

    def broken() -> datetime:
        raise RuntimeError("a bug")

    with structlog.testing.capture_logs() as lines:
        status, headers, _ = asked(database, scope(b"{}"), clock=broken)
    assert (status, headers[b"retry-after"], headers[b"connection"]) == (503, b"5", b"close")
    assert [(line["event"], line["connection"], line["exc_info"]) for line in lines] == [
        ("the webhook endpoint failed", "c1", True)
    ]


def test_a_request_that_waits_too_long_is_refused_and_leaves_nothing(database: Database) -> None:
    """A delivery that waits behind a long transaction is not recorded; a later one is."""
    connect(database)

    async def wait() -> None:
        writer = DeliveryWriter(database, notify=lambda: None)
        writer.start()
        with database.writing():
            first = asyncio.create_task(writer.accept(records.arrival(id="d1"), seconds=0.1))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            second = asyncio.create_task(writer.accept(records.arrival(id="d2"), seconds=0.1))
            for late in (first, second):
                with pytest.raises(StoreUnavailable, match="in time"):
                    await late
            assert not writer.healthy
        third = await writer.accept(records.arrival(id="d3"), seconds=PATIENCE)
        assert third.delivery == "d3"
        await writer.stop()

    asyncio.run(wait())
    with database.reading() as conn:
        kept = {row.id for row in conn.exec_driver_sql("SELECT id FROM deliveries")}
    assert "d2" not in kept
    assert "d3" in kept


def test_a_connection_that_cannot_be_looked_up_in_time_is_503(database: Database) -> None:
    """The endpoint uses its own thread, however long the store's other threads are busy."""
    connect(database)
    release = threading.Event()

    async def look() -> None:
        cache = ConnectionCache(database, KEYRING)
        busy = [asyncio.create_task(database.read(lambda _: release.wait(PATIENCE * 10))) for _ in range(20)]
        await asyncio.sleep(0)
        assert (await cache.find("c1", seconds=PATIENCE)).id == "c1"
        cache.forget("c1")
        stuck = [
            asyncio.create_task(database.look_up(lambda _: release.wait(PATIENCE * 10))) for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="in time"):
            await cache.find("c1", seconds=0.05)
        release.set()
        await asyncio.gather(*busy, *stuck)

    asyncio.run(look())


def test_a_server_that_is_away_fills_no_log(tmp_path: Path) -> None:
    """Workers, reconcilers, heartbeat and endpoint fail on it repeatedly, and the log has it once."""
    with Postgres() as server:
        url = server.database()
        with Service(tmp_path / "data", DATABASE_URL=url, SECRET_KEY="s" * 32) as service:
            connection = service.connect("https://github.example/acme/digits.git")
            begin = len(service.log())
            server.stop()
            statuses = [service.deliver(connection, b"{}", event="star")[0] for _ in range(30)]
            server.start()
            wait_for(
                lambda: [line for line in service.log() if line["event"] == "the database answers again"],
                "the end of the outage is logged",
            )
            logged = [line for line in service.log()[begin:] if "database" in str(line)]
    assert statuses == [503] * 30
    assert [line["event"] for line in logged].count("the database does not answer; work waits") in {1, 2}
    assert len(logged) <= 6


def test_an_outage_is_logged_once_for_all_tasks() -> None:
    """Not once a second by each task; its end is logged too."""
    database = Database("postgresql://nobody@127.0.0.1:9/nothing")
    with structlog.testing.capture_logs() as lines:
        for _ in range(5):
            with pytest.raises(StoreUnavailable), database.reading():
                pass
    database.close()
    assert [line["event"] for line in lines] == ["the database does not answer; work waits"]
