"""Transactions of the hot path: on the event loop, on either database, atomic."""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, event, insert, select, text
from sqlalchemy.exc import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from structlog.testing import capture_logs

from gateway.errors import SettingError, StoreUnavailable
from gateway.store import database as module
from gateway.store.database import Database, Lock
from gateway.store.tables import connections, leases, refs
from testing.descriptors import open_files
from testing.postgres import Postgres, end_all_connections
from testing.records import NOW, connection
from testing.service import wait_for

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


def test_a_file_that_is_not_a_database_is_reported_and_closed(tmp_path: Path) -> None:
    """The first connection finds it out."""
    (tmp_path / "damaged.db").write_bytes(b"no database " * 1000)
    database = Database(f"sqlite:///{tmp_path / 'damaged.db'}")
    with pytest.raises(StoreUnavailable, match="is damaged: file is not a database") as raised:
        database.migrate()
    database.close()
    assert open_files(tmp_path) == set()
    assert "restore it from a back-up" in str(raised.value)
    assert str(raised.value).endswith(f"({tmp_path / 'damaged.db'})")


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


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Database]:
    """Return an empty PostgreSQL database, without tables."""
    with closing(Database(postgres.database())) as database:
        yield database


def url_of(database: Database) -> str:
    """Return the URL with which any client can connect."""
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)


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


def test_a_server_that_only_reads_is_reported_once(server: Database) -> None:
    """As a standby: reads that succeed between the failing writes do not end the outage."""

    def set_read_only(value: str) -> None:
        with psycopg.connect(url_of(server), autocommit=True) as admin:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute(f"ALTER DATABASE {server.url.database} SET default_transaction_read_only = {value}")
        server.engine.dispose()

    def write() -> None:
        with server.writing() as conn:
            conn.execute(text("CREATE TABLE written (number integer)"))

    set_read_only("on")
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="read-only transaction"):
                write()
            with server.reading() as conn:
                conn.execute(text("SELECT 1"))
        set_read_only("off")
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


OUTAGES = [
    (OperationalError("SELECT 1", {}, Exception("disk full\nmore")), "does not answer: disk full"),
    (InternalError("SELECT 1", {}, Exception("only reads")), "does not answer: only reads"),
    (psycopg.OperationalError("the connection is lost"), "does not answer: the connection is lost"),
    (TimeoutError("too slow"), "does not answer: too slow"),
    (DatabaseError("SELECT 1", {}, Exception("malformed")), "is damaged: malformed; restore it from"),
    (InterfaceError("SELECT 1", {}, Exception("closed"), connection_invalidated=True), "went away: closed"),
]


@pytest.mark.parametrize(("error", "reason"), OUTAGES)
def test_an_outage_is_reported_in_a_line(embedded: Database, error: Exception, reason: str) -> None:
    """Whatever the driver's error, callers see one error type, with the reason."""
    with pytest.raises(StoreUnavailable, match=f"the database {reason}") as raised, embedded.reading():
        raise error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("error", "reason"), OUTAGES)
def test_an_outage_at_the_start_is_reported_with_the_file(
    embedded: Database, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """An operator sees a reason and where to look, not a traceback."""

    def fail(_connection: Connection) -> None:
        raise error

    monkeypatch.setattr(module, "present_revision", fail)
    with pytest.raises(StoreUnavailable, match=f"the database {reason}") as raised:
        embedded.is_new()
    assert str(raised.value).endswith(f"({embedded.url.database})")


@pytest.mark.parametrize(
    "error", [InterfaceError("SELECT 1", {}, Exception("a bug")), KeyError("a bug"), ValueError("a bug")]
)
def test_a_bug_is_no_outage(embedded: Database, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """It is raised, not retried for ever."""

    def fail(_connection: Connection) -> None:
        raise error

    monkeypatch.setattr(module, "present_revision", fail)
    with pytest.raises(type(error), match="a bug"):
        embedded.is_new()
    with pytest.raises(type(error), match="a bug"), embedded.reading():
        raise error


def test_an_error_shows_no_value(embedded: Database) -> None:
    """Values are bodies and encrypted secrets, and errors are logged."""
    with pytest.raises(IntegrityError) as raised, embedded.writing() as transaction:
        transaction.execute(insert(leases).values(connection="a secret", attempts=0, due_at=NOW))
    assert "a secret" not in str(raised.value)


def test_json_that_was_kept_with_half_a_character_can_be_shown(embedded: Database) -> None:
    """Earlier versions stored it unchanged; it cannot be encoded as UTF-8 in an answer."""
    with embedded.writing() as transaction:
        transaction.exec_driver_sql("UPDATE connections SET triggers = ?", ('["a\\ud800z", "b"]',))
        [shown] = transaction.execute(select(connections.c.triggers)).scalars()
    assert shown[0].encode()
    assert (shown[0][0], shown[0][-1], shown[1]) == ("a", "z", "b")


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


def test_a_new_database_is_one_without_tables(embedded: Database, tmp_path: Path) -> None:
    """Until a version has made them."""
    assert not embedded.is_new()
    with closing(Database(f"sqlite:///{tmp_path / 'new.db'}")) as database:
        assert database.is_new()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nonsense with s3cret", "it cannot be read"),
        ("postgresql://me:s3cret@host:port/name", "it cannot be read"),
        ("mysql://me:s3cret@host/name", "cannot use mysql"),
        ("sqlite://", "it names no file"),
        ("sqlite:///:memory:", "it names no file"),
    ],
)
def test_a_url_of_no_use_is_a_wrong_setting(url: str, reason: str) -> None:
    """As soon as it is read, and without its password."""
    with pytest.raises(SettingError, match=f"PUSHGATE_DATABASE_URL.*{reason}") as raised:
        Database(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize("url", ["postgresql://host", "postgres://host/", "postgresql+psycopg://host/name"])
def test_a_url_of_a_server_need_not_name_the_database(url: str) -> None:
    """The server's default has the user's name."""
    with closing(Database(url)) as database:
        assert not database.is_embedded


def test_an_option_that_no_driver_takes_is_a_wrong_setting() -> None:
    """The error comes before anything is sent."""
    with (
        closing(Database("postgresql://me@127.0.0.1:9/name?nonsense=1")) as database,
        pytest.raises(SettingError, match=r"PUSHGATE_DATABASE_URL.*nonsense"),
    ):
        database.is_new()


def test_a_server_that_is_away_at_the_start_is_reported() -> None:
    """With the driver's reason; there is no file to name."""
    with (
        closing(Database("postgresql://me@127.0.0.1:9/name")) as database,
        pytest.raises(StoreUnavailable, match=r"does not answer: .*refused") as raised,
    ):
        database.is_new()
    assert "(name)" not in str(raised.value)
