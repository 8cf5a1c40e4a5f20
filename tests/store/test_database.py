"""Transactions of the hot path: on the event loop, on either database, atomic."""

import asyncio
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psycopg
import pytest
from sqlalchemy import Connection, insert, select, text
from sqlalchemy.exc import (
    IntegrityError,
)
from structlog.testing import capture_logs

from gateway.errors import StoreUnavailable
from gateway.store import database as module
from gateway.store.database import Database
from gateway.store.tables import leases, refs
from testing.descriptors import open_files
from testing.postgres import Postgres, end_all_connections, url_of
from testing.records import NOW, connection

# Safety bound: a wait this long would never end.
SECONDS = 20.0


def names(transaction: Connection) -> list[str]:
    """Return the refs that are known."""
    return list(transaction.execute(select(refs.c.ref).order_by(refs.c.ref)).scalars())


def add_next(transaction: Connection, known: list[str]) -> None:
    """Add one more ref."""
    row = {"connection": "c1", "ref": f"refs/heads/{len(known)}", "generation": 1}
    transaction.execute(insert(refs).values(row))


def add_then_fail(transaction: Connection, known: list[str]) -> None:
    """Write, and then write an invalid row: a lease on no connection."""
    add_next(transaction, known)
    transaction.execute(insert(leases).values(connection="none", attempts=0, due_at=NOW))


def prepared(url: str) -> Database:
    """Return a database with one connection of a repository."""
    database = Database(url)
    database.migrate()
    connection(database)
    return database


def test_what_is_decided_is_kept(url: str) -> None:
    """Each transaction sees the writes of the one before."""
    database = prepared(url)

    async def run() -> list[list[str]]:
        try:
            return [await database.write_inline(names, add_next) for _ in range(3)]
        finally:
            await database.aclose()

    assert asyncio.run(run()) == [[], ["refs/heads/0"], ["refs/heads/0", "refs/heads/1"]]


def test_what_fails_leaves_nothing_and_the_next_goes_on(url: str) -> None:
    """Writes before the failure are rolled back too."""
    database = prepared(url)

    async def run() -> list[list[str]]:
        try:
            with pytest.raises(IntegrityError):
                await database.write_inline(names, add_then_fail)
            return [await database.write_inline(names, add_next) for _ in range(2)]
        finally:
            await database.aclose()

    assert asyncio.run(run()) == [[], ["refs/heads/0"]]


def test_what_is_closed_leaves_no_file_open(tmp_path: Path) -> None:
    """However the connections were used, also after repeated closes; Python 3.13 warns of each one left."""
    database = prepared(f"sqlite:///{tmp_path / 'used.db'}")

    async def run() -> None:
        await database.write_inline(names, add_next)
        with pytest.raises(IntegrityError):
            await database.write_inline(names, add_then_fail)
        await database.write_inline(names, add_next)
        with database.reading() as transaction:
            assert await database.read(names) == names(transaction)
        assert "used.db" in open_files(tmp_path)
        await database.aclose()

    asyncio.run(run())
    database.close()
    assert open_files(tmp_path) == set()


def test_a_server_that_is_away_is_reported_and_found_again() -> None:
    """Before the transaction, and in the middle of it, where the commit is not answered."""
    with Postgres() as server:
        database = prepared(server.database())

        def add_and_lose_the_server(transaction: Connection, known: list[str]) -> None:
            server.stop()
            add_next(transaction, known)

        async def run() -> list[str]:
            try:
                await database.write_inline(names, add_next)
                with pytest.raises(StoreUnavailable):
                    await database.write_inline(names, add_and_lose_the_server)
                with pytest.raises(StoreUnavailable):
                    await database.write_inline(names, add_next)
                server.start()
                return await database.write_inline(names, add_next)
            finally:
                await database.aclose()

        assert asyncio.run(run()) == ["refs/heads/0"]


@pytest.fixture
def embedded(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """Return an SQLite database with one connection of a repository."""
    file = tmp_path / "test.db"
    file.write_bytes(migrated.read_bytes())
    with closing(Database(f"sqlite:///{file}")) as database:
        connection(database)
        yield database


def another_process(database: Database) -> sqlite3.Connection:
    """Return a connection to an SQLite file that never waits for a lock."""
    return sqlite3.connect(
        str(database.url.database), timeout=0, isolation_level=None, check_same_thread=False
    )


@contextmanager
def written_by_another_process(database: Database) -> Iterator[Callable[[], None]]:
    """Hold the SQLite file's write lock; return a function that releases it. A time-out releases it too."""
    with closing(another_process(database)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(SECONDS, other.rollback)
        timer.start()
        try:
            yield other.rollback
        finally:
            timer.cancel()
            timer.join()


def test_a_writer_excludes_other_writers_from_its_first_statement(embedded: Database) -> None:
    """What it reads stays true until it commits; readers do not block writers."""
    with closing(another_process(embedded)) as other:
        with embedded.writing(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        with embedded.reading() as transaction:
            assert names(transaction) == []
            other.execute("BEGIN IMMEDIATE")
            other.rollback()


def test_writers_of_a_server_do_not_wait_for_each_other(server: Database) -> None:
    """A queue is only for SQLite, which has one writer at a time."""
    with server.writing(), ThreadPoolExecutor(1) as threads:

        def write() -> int:
            with server.writing() as transaction:
                return int(transaction.execute(text("SELECT 1")).scalar_one())

        assert threads.submit(write).result(timeout=SECONDS) == 1


def test_a_transaction_of_a_server_is_whole_or_not_at_all(server: Database) -> None:
    """A failure takes back the statements before it, and the limits of the session stay."""
    with server.writing() as transaction:
        transaction.execute(text("CREATE TABLE kept (number integer PRIMARY KEY)"))

    def insert_twice(transaction: Connection) -> None:
        for _ in range(2):
            transaction.execute(text("INSERT INTO kept VALUES (1)"))

    with pytest.raises(IntegrityError):
        asyncio.run(server.write(insert_twice))
    with server.reading() as transaction:
        assert transaction.execute(text("SELECT count(*) FROM kept")).scalar() == 0
        limits = ("statement_timeout", "lock_timeout", "plan_cache_mode")
        assert [transaction.execute(text(f"SHOW {name}")).scalar() for name in limits] == [
            "1min",
            "30s",
            "force_custom_plan",
        ]


def test_the_loss_of_the_servers_machine_is_noticed_within_seconds(server: Database) -> None:
    """The system would send the last statement again for a quarter of an hour."""

    def limit(file: int) -> int:
        with socket.socket(fileno=os.dup(file)) as used:
            return used.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    def of_connection(conn: Connection) -> int:
        driver: Any = conn.connection.driver_connection
        return limit(driver.fileno())

    async def run() -> list[int]:
        try:
            inline = await server.write_inline(of_connection, lambda _connection, _limit: None)
            return [inline, await server.read(of_connection)]
        finally:
            await server.aclose()

    assert asyncio.run(run()) == [10_000, 10_000]


def test_connections_that_a_server_has_ended_are_replaced(server: Database) -> None:
    """A restart of the server between two transactions fails neither of them."""

    async def run() -> list[int]:
        def number(transaction: Connection) -> int:
            return int(transaction.execute(text("SELECT 1")).scalar_one())

        found = []
        for _ in range(2):
            found.append(await server.read(number))
            found.append(await server.write_inline(number, lambda _transaction, _number: None))
            assert await asyncio.to_thread(end_all_connections, url_of(server)) >= 2
        await server.aclose()
        return found

    assert asyncio.run(run()) == [1, 1, 1, 1]


def test_one_connection_that_was_ended_is_enough_to_replace_all(
    server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that was lost, each test of a connection would take seconds."""

    def use_three() -> None:
        with server.reading(), server.reading(), server.reading() as conn:
            conn.execute(text("SELECT 1"))

    use_three()
    end_all_connections(url_of(server))
    ping = Mock(wraps=server.engine.dialect.do_ping)
    monkeypatch.setattr(server.engine.dialect, "do_ping", ping)
    use_three()
    assert ping.call_count == 1


def test_a_server_that_only_reads_is_reported_once_and_left(server: Database) -> None:
    """As a standby: reads that succeed meanwhile do not end the outage; connections to it are not kept."""

    def set_read_only(value: str) -> None:
        with psycopg.connect(url_of(server), autocommit=True) as admin:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute(f"ALTER DATABASE {server.url.database} SET default_transaction_read_only = {value}")

    def write() -> None:
        with server.writing() as conn:
            conn.execute(text("CREATE TABLE written (number integer)"))

    set_read_only("on")
    server.engine.dispose()
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="read-only transaction"):
                write()
            with server.reading() as conn:
                conn.execute(text("SELECT 1"))
        set_read_only("off")
        # The last connection is one of before, until it fails.
        with pytest.raises(StoreUnavailable, match="read-only transaction"):
            write()
        write()
    events = [entry["event"] for entry in logs]
    assert events == ["the database does not answer; work waits", "the database answers again"]


def test_a_failed_commit_leaves_nothing_and_the_next_goes_on(embedded: Database) -> None:
    """SQLite keeps a transaction open whose commit fails, as on a full disk."""

    def add_what_cannot_be_committed(transaction: Connection, known: list[str]) -> None:
        transaction.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        add_then_fail(transaction, known)

    async def run() -> list[list[str]]:
        with pytest.raises(IntegrityError):
            await embedded.write_inline(names, add_what_cannot_be_committed)
        return [await embedded.write_inline(names, add_next) for _ in range(2)]

    assert asyncio.run(run()) == [[], ["refs/heads/0"]]


def test_the_event_loop_goes_on_while_a_thread_writes(embedded: Database) -> None:
    """A write on the loop waits in a thread, and then writes."""
    has_begun, release = threading.Event(), threading.Event()

    def long_work(_transaction: Connection) -> bool:
        has_begun.set()
        return release.wait(SECONDS)

    async def run() -> list[object]:
        long = asyncio.create_task(embedded.write(long_work))
        await asyncio.to_thread(has_begun.wait, SECONDS)
        waiting = asyncio.create_task(embedded.write_inline(names, add_next))
        asyncio.get_running_loop().call_later(0.05, release.set)
        return [await long, await waiting, await embedded.read(names)]

    assert asyncio.run(run()) == [True, [], ["refs/heads/0"]]


def test_the_hot_path_waits_for_another_process(embedded: Database) -> None:
    """In a thread; then the work is done, and connections have their earlier time-out."""

    def patience(transaction: Connection) -> int:
        return int(transaction.exec_driver_sql("PRAGMA busy_timeout").scalar_one())

    async def run() -> tuple[list[str], list[int]]:
        with written_by_another_process(embedded) as end:
            asyncio.get_running_loop().call_later(0.05, end)
            known = await embedded.write_inline(names, add_next)
        used_again = await embedded.write(patience)
        on_the_loop = await embedded.write_inline(patience, lambda _transaction, _patience: None)
        with embedded.reading() as first, embedded.reading() as new:
            return known, [used_again, patience(first), patience(new), on_the_loop]

    # On the event loop nothing waits.
    assert asyncio.run(run()) == ([], [10_000, 10_000, 10_000, 0])


@pytest.mark.parametrize("by", ["a thread", "another process"])
def test_the_hot_path_gives_up_before_the_provider_does(
    embedded: Database, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """If others write for too long, the delivery is refused, so that the provider can send it again."""
    monkeypatch.setattr(module, "_INLINE_SECONDS", 0.05)

    async def run() -> None:
        with pytest.raises(StoreUnavailable):
            await embedded.write_inline(names, add_next)

    with written_by_another_process(embedded) if by == "another process" else held_by_a_thread(embedded):
        asyncio.run(run())
    assert asyncio.run(embedded.read(names)) == []


def test_who_comes_too_late_to_the_queue_does_not_wait(
    embedded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time before the thread began counts as well."""
    monkeypatch.setattr(module, "_INLINE_SECONDS", 0.0)

    async def run() -> None:
        with held_by_a_thread(embedded), pytest.raises(StoreUnavailable, match="writing"):
            await embedded.write_inline(names, add_next)

    asyncio.run(run())


@contextmanager
def held_by_a_thread(database: Database, *, seconds: float = SECONDS) -> Iterator[None]:
    """Have a thread write during the block, at most for this long."""
    has_begun, release = threading.Event(), threading.Event()

    def hold() -> None:
        with database.writing():
            has_begun.set()
            release.wait(seconds)

    with ThreadPoolExecutor(1) as threads:
        held = threads.submit(hold)
        try:
            assert has_begun.wait(SECONDS)
            yield
        finally:
            release.set()
        held.result()


def test_long_work_keeps_no_probe_waiting(embedded: Database) -> None:
    """Probes do not delay work, and neither delays the lookups of the webhook endpoint."""
    release = threading.Event()

    def wait(_transaction: Connection) -> bool:
        return release.wait(SECONDS)

    async def run() -> None:
        async with asyncio.timeout(SECONDS / 2), asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(embedded.read(wait))
            await asyncio.sleep(0)
            assert await embedded.read_probe(names) == []
            assert await embedded.write_probe(names) == []
            assert await embedded.look_up(names) == []
            release.set()
        release.clear()
        async with asyncio.timeout(SECONDS / 2), asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(embedded.read_probe(wait))
            await asyncio.sleep(0)
            assert await embedded.read(names) == []
            assert await embedded.write(names) == []
            release.set()
        release.clear()
        async with asyncio.timeout(SECONDS / 2), asyncio.TaskGroup() as tasks:
            # Long count queries of the metrics, and one look-up that hangs.
            tasks.create_task(embedded.read_probe(wait))
            tasks.create_task(embedded.look_up(wait))
            await asyncio.sleep(0)
            assert await embedded.read_probe(names) == []
            assert await embedded.look_up(names) == []
            release.set()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["read", "probe", "look_up", "write_inline"])
def test_what_is_under_way_ends_before_the_database_is_closed(embedded: Database, how: str) -> None:
    """On whichever thread: a process that stops loses no transaction."""
    has_begun, is_done = threading.Event(), threading.Event()

    def work(_transaction: Connection) -> None:
        has_begun.set()
        # Long enough that a close that does not wait would return before.
        time.sleep(0.05)
        is_done.set()

    ways: dict[str, Callable[[], Awaitable[None]]] = {
        "read": partial(embedded.read, work),
        "probe": partial(embedded.read_probe, work),
        "look_up": partial(embedded.look_up, work),
        "write_inline": partial(embedded.write_inline, work, lambda _transaction, _nothing: None),
    }

    async def run() -> None:
        with held_by_a_thread(embedded, seconds=0.05):
            waiting = asyncio.ensure_future(ways[how]())
            await asyncio.to_thread(has_begun.wait, SECONDS)
        embedded.close()
        assert is_done.is_set()
        await waiting

    asyncio.run(run())


def test_a_new_database_is_one_without_tables(embedded: Database, tmp_path: Path) -> None:
    """Until a version has made them."""
    assert not embedded.is_new()
    with closing(Database(f"sqlite:///{tmp_path / 'new.db'}")) as database:
        assert database.is_new()
