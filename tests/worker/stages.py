"""Stages of the tests for the worker, and a database that fails where a test wants it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy

from gateway.errors import (
    FetchError,
    ObjectUnusable,
)
from gateway.store import accept, deliveries
from gateway.store.claims import Claims
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.tables import leases
from gateway.store.work_queue import PendingUpdate, Settlement
from gateway.worker.worker import Stages, Worker
from testing.records import arrival, connection, move
from testing.service import wait_for

P = ParamSpec("P")


T = TypeVar("T")


CLAIMS = Claims(process="p")


Work = Callable[..., object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a function of the store, with its arguments and its time."""

    work: Work
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    called_at: datetime


class FaultyDatabase(Database):
    """A database on which the functions in `failing` fail once each; it records the calls."""

    def __init__(self, url: str) -> None:
        """Begin without failures."""
        super().__init__(url)
        self.failing: dict[Work, Exception] = {}
        self.calls: list[Call] = []

    async def write(
        self, work: Callable[Concatenate[sqlalchemy.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Record the call; fail, or write."""
        self._observe(work, args, kwargs)
        return await super().write(work, *args, **kwargs)

    async def read(
        self, work: Callable[Concatenate[sqlalchemy.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Record the call; fail, or read."""
        self._observe(work, args, kwargs)
        return await super().read(work, *args, **kwargs)

    def _observe(self, work: Work, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.calls.append(Call(work=work, args=args, kwargs=kwargs, called_at=datetime.now(UTC)))
        if work in self.failing:
            raise self.failing.pop(work)

    def calls_of(self, *works: Work) -> list[Call]:
        """Return the calls of these functions so far."""
        return [call for call in self.calls if call.work in works]


class Scripted:
    """Stages in which each ref raises its given errors, one at each try; afterwards nothing runs for it."""

    def __init__(self, **failing: Sequence[Exception]) -> None:
        """Set the failures by the short names of the refs."""
        self._failing = {name: list(errors) for name, errors in failing.items()}
        self.planned: list[str] = []

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Fetch everything except refused objects, for which the fetch fails."""
        progress(connection.id)
        first = {update.seq: next(iter(self._failing.get(update.name, ())), None) for update in updates}
        return {seq: error for seq, error in first.items() if isinstance(error, ObjectUnusable)}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Raise this ref's errors, then run nothing."""
        assert connection.id == update.connection
        self.planned.append(update.name)
        errors = self._failing.get(update.name)
        if errors:
            raise errors.pop(0)
        return Settlement(update=update, state="planned", reason="nothing runs")


def pushed(database: Database, *names: str, received_at: datetime | None = None) -> None:
    """Make a connection, and record pushes to these branches, one delivery each."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as conn:
        for number, name in enumerate(names):
            push = move(f"{number:040x}", f"{number + 1:040x}", ref=f"refs/heads/{name}")
            accept.record(conn, [arrival(push, received_at=received_at or now)])


def states(database: Database) -> dict[str, tuple[str, str | None]]:
    """Return the state and reason of each branch's newest push."""
    with database.reading() as conn:
        found = deliveries.page(conn, connection=None, verdict=None, before=None, limit=50)
    updates = sorted((one for delivery in found for one in delivery.updates), key=lambda one: one.seq)
    return {one.update.name: (one.state, one.reason) for one in updates}


async def worked(database: Database, stages: Stages, until: Callable[[], object], **more: Any) -> None:
    """Run a worker until a condition holds."""
    notifier = Notifier()
    given = {"claims": CLAIMS, "notify": notifier.notify, "poll_seconds": 0.05, **more}
    worker = Worker(name="w", database=database, stages=stages, wakeups=notifier.subscribe(), **given)
    running = asyncio.create_task(worker.run())
    try:
        await asyncio.to_thread(wait_for, until, "the worker is done")
    finally:
        running.cancel()
        await asyncio.wait({running})


def is_released(database: Database) -> bool:
    """Return whether no worker has the lease of the only connection."""
    with database.reading() as conn:
        return conn.execute(leases.select()).one().owner is None
