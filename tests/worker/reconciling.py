"""A reconciler with a remote that a test controls."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from gateway.store import accept, reconciliations
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.ids import delivery_id
from gateway.store.notify import Notifier
from gateway.store.tables import reconciliations as reconciliations_table
from gateway.worker.reconciler import Reconciler
from testing.records import NOW, arrival, move

MAIN = "refs/heads/main"
ANY_SECONDS = 10.0
T = TypeVar("T")


@dataclass
class Remote:
    """A remote that returns the test's refs, once `asked` has ended."""

    shown: dict[str, str]
    asked: Callable[[], Awaitable[None]] | None = None
    fails: Exception | None = None
    looks: int = 0

    async def refs(self, _connection: Connection) -> dict[str, str]:
        """Return the test's refs."""
        self.looks += 1
        shown = dict(self.shown)
        if self.asked is not None:
            await self.asked()
        if self.fails is not None:
            raise self.fails
        return shown

    async def default_branch(self, _connection: Connection) -> str | None:
        """Return a branch."""
        return "main"


@dataclass
class Gateway:
    """A reconciler, its store, and the time."""

    database: Database
    remote: Remote
    now: datetime = NOW
    notified_at: list[datetime] = field(default_factory=list)

    def reconciler(self) -> Reconciler:
        """Return the reconciler."""
        return Reconciler(
            database=self.database,
            remotes=self.remote,
            wakeups=Notifier().subscribe(),
            notify=lambda: self.notified_at.append(self.now),
            every=300,
            grace=10,
            per_host=0,
            clock=lambda: self.now,
        )

    def look(self, *, after: float = 0) -> bool:
        """Do the reconciliation that is due so many seconds later; return whether one was."""
        self.now += timedelta(seconds=after)
        return asyncio.run(self.reconciler().reconcile_next())

    def deliver(self, before: str | None, after: str | None) -> None:
        """Record a webhook that reports a move of main."""
        sent = arrival(move(before, after), id=delivery_id(self.now), received_at=self.now)
        with self.database.writing() as conn:
            accept.record(conn, [sent])

    def request(self) -> None:
        """Request a reconciliation now."""
        with self.database.writing() as conn:
            reconciliations.request(conn, "c1", now=self.now)

    def state(self) -> reconciliations.ReconciliationState:
        """Return the state of the connection's reconciliations."""
        with self.database.reading() as conn:
            return reconciliations.states(conn, ["c1"])["c1"]

    def position(self) -> str | None:
        """Return the known position of main."""
        with self.database.reading() as conn:
            return reconciliations.known_refs(conn, "c1").get(MAIN)


def due(gateway: Gateway) -> datetime:
    """Return when the next look is due."""
    with gateway.database.reading() as conn:
        found: datetime = conn.execute(reconciliations_table.select()).one().due_at
    return found


def put_off(gateway: Gateway, **values: Any) -> None:
    """Change the state of the connection's reconciliations."""
    with gateway.database.writing() as conn:
        conn.execute(reconciliations_table.update().values(**values))
