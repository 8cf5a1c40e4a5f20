"""Access to the database: transactions that are durable when they end, on SQLite and PostgreSQL.

Work on the database is written as plain functions over a SQLAlchemy `Connection`. It runs in a thread, or
yields the event loop while it waits. This module is independent of what is stored.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from enum import IntEnum, unique
from typing import Any, Concatenate, ParamSpec, TypeVar

from psycopg import OperationalError as ConnectionLost
from psycopg.errors import ProgramLimitExceeded
from sqlalchemy import Connection, Engine, RootTransaction, func, select, text
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import SettingError, StoreUnavailable
from gateway.logs import Condition
from gateway.store import engine
from gateway.store.engine import BUSY_MS, KEEPALIVES, WRONG_URL, Meter, read_url
from gateway.store.leading import Leading, may_lead
from gateway.store.migrate import migrate_embedded, migrate_server, present_revision
from gateway.store.publishing_lanes import SINGLE, PublishingLane
from gateway.threads import FILES

T = TypeVar("T")

P = ParamSpec("P")

_THREADS = 4

# One thread for readiness, one for the metrics.
_PROBES = 2

# For the webhook endpoint's lookups of connections, which must not wait for long work.
_LOOKUPS = 2

# Providers give up after 10 seconds and lose the event, so a write that they wait for must fail earlier.
_INLINE_SECONDS = 3.0


@unique
class Lock(IntEnum):
    """Advisory locks of PostgreSQL, for work that one process does at a time. The numbers are arbitrary."""

    MIGRATION = 5_074_711
    RELAY = 5_074_712
    RETENTION = 5_074_713
    EVENTS = 5_074_714
    CLAIM = 5_074_715
    NAMES = 5_074_716
    QUEUE = 5_074_717
    REFUSALS = 5_074_718
    REDELIVERIES = 5_074_719
    RUNS = 5_074_720
    STATUSES = 5_074_721
    NOTIFICATIONS = 5_074_722


def lock(conn: Connection, which: Lock) -> None:
    """Wait for an advisory lock, and hold it until the transaction ends. SQLite has one writer anyway."""
    if conn.dialect.name != "sqlite":
        conn.execute(select(func.pg_advisory_xact_lock(which.value)))


class Database:
    """A database by its URL, such as `sqlite:////var/lib/pushgate/pushgate.db` or `postgresql://…`."""

    def __init__(self, url: str) -> None:
        """Connect lazily: nothing is opened before the first transaction. Raise `SettingError`."""
        self.url = read_url(url)
        self.engine = engine.create(self.url)
        # For the hot path, which runs on the event loop.
        self._async_engine = None if self.is_embedded else engine.create_async(self.url)
        # SQLite has one writer at a time and lets the others poll; a lock lets them queue instead.
        self._writers = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")
        # A separate thread: all others may wait for the lock that this commit holds.
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        # Separate threads for the probes: long lists in all other threads must not make a process unready.
        self._probes = ThreadPoolExecutor(_PROBES, thread_name_prefix="health")
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        self._away = Condition("the database does not answer; work waits", over="the database answers again")
        # Where a write has failed, as on a standby, reads that succeed do not end the outage.
        self._is_written = True
        self._inline: Connection | None = None
        self._leading = Leading(self.engine)
        self.meter = Meter()

    @property
    def is_embedded(self) -> bool:
        """Return whether this is the SQLite database of a single machine."""
        return self.url.get_backend_name() == "sqlite"

    def engines(self) -> dict[str, Engine]:
        """Return the engine that the threads use, and the one of the event loop, if there is one."""
        found = {"threads": self.engine}
        return found if self._async_engine is None else {**found, "loop": self._async_engine.sync_engine}

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction that may write. It is on disk when the block ends without an error.

        Raise `StoreUnavailable` if the database cannot be reached or written.
        """
        alone = self._writers if self.is_embedded else nullcontext()
        with self._translated(writes=True), alone, self.engine.connect() as conn, self._transaction(conn):
            yield conn

    @contextmanager
    def _transaction(self, conn: Connection) -> Iterator[None]:
        """Open a transaction, whose commit at the end of the block is measured."""
        with conn.begin():
            yield
            began_at = time.monotonic()
        self.meter.committed(time.monotonic() - began_at)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read-only transaction, which waits for no writer."""
        with (
            self._translated(writes=False),
            self.engine.connect().execution_options(reads_only=True) as connection,
        ):
            yield connection

    async def write(
        self, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `work` with these arguments in a transaction of its own, off the event loop."""
        return await self._run(self._threads, self.writing, lambda conn: work(conn, *args, **kwargs))

    async def write_probe(self, work: Callable[[Connection], T]) -> T:
        """Run `work` as `write` does, on the threads of the health probes."""
        return await self._run(self._probes, self.writing, work)

    async def write_inline(
        self, decide: Callable[[Connection], T], keep: Callable[[Connection, T], None]
    ) -> T:
        """Run a few short statements of the hot path in a transaction of their own, on the event loop.

        `decide` reads and returns what `keep` then writes. To switch to a thread and back for each statement
        costs more than the statements (without it, 1.4 times as many deliveries are accepted). So on SQLite
        only the commit, which waits for the disk, leaves the event loop. If another writer is active, all of
        it waits in a thread, for at most three seconds. Do not cancel it.
        """

        def work(connection: Connection) -> T:
            decided = decide(connection)
            keep(connection, decided)
            return decided

        if self._async_engine is not None:
            with self._translated(writes=True):
                return await _write_over_the_network(self._async_engine, decide, keep, self.meter)
        if not self._writers.acquire(blocking=False):
            return await self._write_soon(work)
        try:
            with self._translated(writes=True):
                transaction = self._begin_at_once()
                if transaction is not None:
                    return await self._finish_inline(transaction, work)
        finally:
            self._writers.release()
        return await self._write_soon(work)

    async def _finish_inline(self, transaction: RootTransaction, work: Callable[[Connection], T]) -> T:
        """Run `work` on the event loop, and commit in a thread."""
        try:
            result = work(transaction.connection)
        except BaseException:
            self._drop_inline()
            raise
        try:
            began_at = time.monotonic()
            await asyncio.get_running_loop().run_in_executor(self._committer, transaction.commit)
            self.meter.committed(time.monotonic() - began_at)
        except Exception:
            self._drop_inline()
            raise
        return result

    async def _write_soon(self, work: Callable[[Connection], T]) -> T:
        """Run `work` as `write` does, on SQLite, but wait at most three seconds for other writers."""
        deadline = time.monotonic() + _INLINE_SECONDS

        def transaction() -> T:
            if not self._writers.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise self._unavailable(
                    "another transaction has been writing to the database for seconds", writes=True
                )
            try:
                with self._translated(writes=True), self.engine.connect() as connection:
                    _set_busy_timeout(connection, deadline - time.monotonic())
                    try:
                        with self._transaction(connection):
                            return work(connection)
                    finally:
                        _set_busy_timeout(connection, BUSY_MS / 1000)
            finally:
                self._writers.release()

        # On the thread of the commits, which is idle: the only writer of the hot path waits here.
        return await asyncio.get_running_loop().run_in_executor(self._committer, transaction)

    def _begin_at_once(self) -> RootTransaction | None:
        """Begin a transaction on the writing connection; None if another process is writing."""
        if self._inline is None:
            self._inline = self.engine.connect()
            _set_busy_timeout(self._inline, 0)
        try:
            return self._inline.begin()
        except OperationalError:
            self._inline.rollback()
            return None

    def _drop_inline(self) -> None:
        """Close the writing connection with its transaction; the next write opens another.

        After a failed commit, as on a full disk, no rollback is sent, and the transaction would stay open
        forever.
        """
        if self._inline is not None:
            self._inline.invalidate()
            self._inline.close()
            self._inline = None

    async def read(
        self, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `work`, which writes nothing, with these arguments, off the event loop."""
        return await self._run(self._threads, self.reading, lambda conn: work(conn, *args, **kwargs))

    async def read_probe(self, work: Callable[[Connection], T]) -> T:
        """Run `work` as `read` does, on the threads of the health probes."""
        return await self._run(self._probes, self.reading, work)

    async def look_up(
        self, work: Callable[Concatenate[Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `work` as `read` does, on threads that run nothing long: a client is waiting."""
        return await self._run(self._lookups, self.reading, lambda conn: work(conn, *args, **kwargs))

    async def _run(
        self,
        threads: ThreadPoolExecutor,
        begin: Callable[[], AbstractContextManager[Connection]],
        work: Callable[[Connection], T],
    ) -> T:
        submitted_at = time.monotonic()

        def transaction() -> T:
            self.meter.waited(time.monotonic() - submitted_at)
            with begin() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(threads, transaction)

    async def is_leader(self, lock: Lock, lane: PublishingLane = SINGLE, *, for_seconds: float = 0.0) -> bool:
        """Return whether this process has held a lock, or its lane, for at least `for_seconds`.

        Take it if no process on this database holds it. It is held until its connection ends: with this
        process, or when the server is gone; a lane also until other processes have too few. An embedded
        database has one process.
        """
        if self.is_embedded:
            return True

        def hold() -> float | None:
            with self._translated(writes=False):
                return self._leading.hold(lock.value, lane)

        held = await asyncio.get_running_loop().run_in_executor(self._threads, hold)
        return held is not None and held >= for_seconds

    async def step_down(self, lock: Lock, lane: PublishingLane) -> None:
        """Leave a lane to other processes until `is_leader` is called again."""

        def step_down() -> None:
            with self._translated(writes=False):
                self._leading.step_down(lock.value, lane)

        if not self.is_embedded:
            await asyncio.get_running_loop().run_in_executor(self._threads, step_down)

    def may_lead(self, transaction: Connection, lock: Lock, lane: PublishingLane = SINGLE) -> bool:
        """Return whether this process leads, or no other process does, until the transaction ends.

        The lock is not held longer: a process that cannot do the work must not keep others from it.
        """
        if self.is_embedded or self._leading.holds(lock.value, lane):
            return True
        return may_lead(transaction, lock.value, lane)

    async def notify(self, channel: str, payload: str) -> None:
        """Send a notification on a channel of PostgreSQL."""
        statement = text("SELECT pg_notify(:channel, :payload)").bindparams(channel=channel, payload=payload)
        await self.write(lambda transaction: transaction.execute(statement).close())

    @asynccontextmanager
    async def listening(self, channels: Sequence[str]) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
        """Listen on channels of PostgreSQL, over a connection that ends with the block.

        Yield an iterator over channel and payload of each notification. Raise `StoreUnavailable` if the
        server is not reachable.
        """
        driver: Any = self.engine.dialect.dbapi
        _, given = self.engine.dialect.create_connect_args(self.url)
        arguments = {**given, **KEEPALIVES, "autocommit": True}
        try:
            async with await driver.AsyncConnection.connect(**arguments) as connection:
                for channel in channels:
                    await connection.execute(f'LISTEN "{channel}"')
                yield ((notice.channel, notice.payload) async for notice in connection.notifies())
        except driver.Error as error:
            raise StoreUnavailable(f"the database does not answer: {_first_line(error)}") from error

    def is_new(self) -> bool:
        """Return whether the database has no tables of any version."""
        with self._opening(), self.engine.connect() as connection:
            return present_revision(connection) is None

    def migrate(self, revision: str = "head") -> None:
        """Migrate the schema to the revision that this code expects, or, in tests, to an earlier one.

        Leave a later schema unchanged if it is marked as compatible with this code. Raise `StoreUnavailable`
        for any other later schema, and if the database cannot be used.
        """
        with self._opening(), self._writers, self.engine.connect() as connection:
            if self.is_embedded:
                migrate_embedded(connection, revision)
            else:
                migrate_server(connection, revision, lock=Lock.MIGRATION.value)

    @contextmanager
    def _translated(self, *, writes: bool) -> Iterator[None]:
        """Raise an outage as `StoreUnavailable`, and log its beginning and end once for all tasks."""
        try:
            yield
        except (DBAPIError, ConnectionLost, TimeoutError) as error:
            reason = _outage(error)
            if reason is None:
                raise
            raise self._unavailable(reason, writes=writes) from error
        if writes or self._is_written:
            self._is_written = True
            self._away.ends()

    def _unavailable(self, reason: str, *, writes: bool) -> StoreUnavailable:
        if writes:
            self._is_written = False
        self._away.holds(reason=reason)
        return StoreUnavailable(reason)

    @contextmanager
    def _opening(self) -> Iterator[None]:
        """Raise an error of opening the database: an outage, or an option that the driver does not accept."""
        try:
            yield
        except (DBAPIError, ConnectionLost, TimeoutError) as error:
            if isinstance(error, ProgrammingError) and error.statement is None:
                # No statement was sent, so an option of the URL is wrong.
                raise SettingError(f"{WRONG_URL}: {_first_line(error)}") from error
            reason = _outage(error)
            if reason is None:
                raise
            where = f" ({self.url.database})" if self.is_embedded else ""
            raise StoreUnavailable(reason + where) from error

    async def aclose(self) -> None:
        """Close all connections, including those of the event loop."""
        if self._async_engine is not None:
            await self._async_engine.dispose()
        await FILES.run(self.close)

    def close(self) -> None:
        """End the threads and close their connections."""
        self._threads.shutdown(wait=True)
        self._probes.shutdown(wait=True)
        self._lookups.shutdown(wait=True)
        self._committer.shutdown(wait=True)
        self._drop_inline()
        self._leading.drop()
        self.engine.dispose()


async def _write_over_the_network(
    engine: AsyncEngine,
    decide: Callable[[Connection], T],
    keep: Callable[[Connection, T], None],
    meter: Meter,
) -> T:
    """Do the work of `write_inline` on PostgreSQL, and yield the event loop at each statement.

    The writes are sent together with the commit, in libpq's pipeline mode, in which SQLAlchemy cannot read:
    one wait instead of five. https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html
    """
    async with engine.connect() as connection:
        decided = await connection.run_sync(decide)
        driver: Any = (await connection.get_raw_connection()).driver_connection
        began_at = time.monotonic()
        try:
            async with driver.pipeline():
                await connection.run_sync(keep, decided)
                await connection.commit()
        except BaseException:
            # It is unknown how much was sent, so this connection is not used again.
            await connection.invalidate()
            raise
        meter.committed(time.monotonic() - began_at)
        return decided


def _set_busy_timeout(connection: Connection, seconds: float) -> None:
    """Set how long a connection to SQLite waits for other writers."""
    driver: Any = connection.connection.driver_connection
    # Not through SQLAlchemy, which would begin a transaction with the old time-out.
    driver.execute(f"PRAGMA busy_timeout = {max(0, int(seconds * 1000))}").close()


def _outage(error: Exception) -> str | None:
    """Return why the database cannot be used, as a sentence; None if the error is a bug of Pushgate."""
    # A value too large for an index: nothing is wrong with the server.
    if isinstance(getattr(error, "orig", error), ProgramLimitExceeded):
        return None
    # PostgreSQL's driver raises `InternalError` for a write to a read-only server.
    if isinstance(error, (OperationalError, InternalError, ConnectionLost, TimeoutError)):
        return f"the database does not answer: {_first_line(error)}"
    # SQLite raises the base class for a file that is damaged or not a database.
    if type(error) is DatabaseError:
        return f"the database is damaged: {_first_line(error)}; restore it from a back-up"
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return f"the database went away: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    original = getattr(error, "orig", None) or error
    return str(original).strip().partition("\n")[0]
