"""The health of the gateway's components, as the overview shows it: state, since when, and why."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, Self

import sqlalchemy

from gateway.errors import PackageStorageUnavailable
from gateway.intake.lookup_cache import LookupCache
from gateway.packages.storage import PackageStorage
from gateway.store import claims, outages, reconciliations, work_queue
from gateway.store.database import Database
from gateway.store.outages import Outage
from gateway.store.reconciliations import Progress
from gateway.store.work_queue import Backlog
from gateway.text.sentences import begin_sentence

State = Literal["ok", "warning", "failing", "off", "unknown"]

MAX_AGE = 10.0
"""How many seconds old the overview may be: an open page refreshes itself more often."""

# Longer than the pauses between tries that only a short disturbance needs.
_LONG = timedelta(minutes=10)
# A bucket that does not answer must not delay the overview.
_STORAGE_SECONDS = 2.0
_STORAGE = "Package storage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A component: its state, the beginning of a problem where it is known, and a sentence about it."""

    name: str
    state: State
    text: str
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """What the store says about the components."""

    backlog: Backlog
    outages: Sequence[Outage]
    workers: int
    last_heartbeat: datetime | None
    progress: Progress

    @classmethod
    def of(cls, conn: sqlalchemy.Connection, *, now: datetime) -> Self:
        """Read the facts."""
        return cls(
            backlog=work_queue.backlog(conn),
            outages=outages.current(conn),
            workers=len(claims.alive(conn, now=now)),
            last_heartbeat=claims.last_heartbeat(conn),
            progress=reconciliations.progress(conn),
        )


@dataclass(slots=True, kw_only=True)
class Components:
    """Describes the components. `disk_trouble` returns why nothing can be fetched to this machine.

    Since when the database or the package storage fails is what this process has seen.
    """

    database: Database
    storage: PackageStorage
    has_broker: bool
    disk_trouble: Callable[[], Awaitable[str | None]]
    _failing_since: dict[str, datetime] = field(default_factory=dict, init=False)
    _checked: LookupCache[str | None] = field(init=False)

    def __post_init__(self) -> None:
        """Start with an empty cache: all viewers share a check of the package storage."""
        self._checked = LookupCache(self._check_storage)

    def forget(self) -> None:
        """Check the package storage again at the next request."""
        self._checked.clear()

    async def without_store(self, reason: str) -> list[Component]:
        """Describe the components while the database does not answer, for this reason."""
        since = self._since("Database", is_failing=True)
        unknown = "The database does not answer, so nothing is known."
        return [
            Component(name="Database", state="failing", text=f"{_sentence(reason)}", since=since),
            Component(name="Broker", state="unknown", text=unknown),
            await self._storage(),
            Component(name="Workers", state="unknown", text=unknown),
            Component(name="Reconciliation", state="unknown", text=unknown),
        ]

    async def described(self, facts: StoreFacts, *, now: datetime) -> list[Component]:
        """Describe the components by what the store says."""
        self._since("Database", is_failing=False)
        return [
            self._database(),
            _broker(facts, now=now) if self.has_broker else _NO_BROKER,
            await self._storage(),
            await self._workers(facts, now=now),
            _reconciliation(facts.progress, now=now),
        ]

    def _database(self) -> Component:
        url = self.database.url
        kind, where = "PostgreSQL", f"{url.host or 'a socket'}/{url.database}"
        if self.database.is_embedded:
            kind, where = "SQLite", Path(url.database or "").name
        return Component(name="Database", state="ok", text=f"{kind}: {where}")

    async def _storage(self) -> Component:
        reason = await self._checked.find(_STORAGE, max_age=MAX_AGE)
        since = self._since(_STORAGE, is_failing=reason is not None)
        if reason is None:
            return Component(name=_STORAGE, state="ok", text="Packages can be stored.")
        return Component(name=_STORAGE, state="failing", text=_sentence(reason), since=since)

    async def _check_storage(self, _key: str) -> str | None:
        """Return why packages cannot be stored, or None."""
        try:
            await asyncio.wait_for(self.storage.check(), _STORAGE_SECONDS)
        except PackageStorageUnavailable as error:
            return str(error)
        except TimeoutError:
            return f"the package storage has not answered for {_STORAGE_SECONDS:.0f} s"
        return None

    async def _workers(self, facts: StoreFacts, *, now: datetime) -> Component:
        name, backlog = "Workers", facts.backlog
        trouble = await self.disk_trouble()
        if trouble is not None:
            since = self._since("Disk", is_failing=True)
            return Component(name=name, state="failing", text=_sentence(trouble), since=since)
        self._since("Disk", is_failing=False)
        if not self.database.is_embedded and facts.workers == 0:
            text = "No worker process runs: pushes are stored, and wait."
            return Component(name=name, state="failing", text=text, since=facts.last_heartbeat)
        waiting = f"{backlog.updates} ref updates wait." if backlog.updates else "Nothing waits."
        if backlog.oldest is not None and now - backlog.oldest > _LONG:
            return Component(name=name, state="warning", text=waiting, since=backlog.oldest)
        running = "In this process." if self.database.is_embedded else f"{facts.workers} live."
        return Component(name=name, state="ok", text=f"{running} {waiting}")

    def _since(self, name: str, *, is_failing: bool) -> datetime | None:
        """Record whether a component fails; return since when it has failed without a pause."""
        if is_failing:
            return self._failing_since.setdefault(name, datetime.now(UTC))
        with suppress(KeyError):
            del self._failing_since[name]
        return None


_NO_BROKER = Component(
    name="Broker",
    state="off",
    text="None is set: requests stay in the store, and runners take them from the API.",
)


def _broker(facts: StoreFacts, *, now: datetime) -> Component:
    backlog = facts.backlog
    if facts.outages:
        texts = (
            f"{outage.what.capitalize()}s are not published, and wait in the store: {outage.reason}."
            for outage in reversed(facts.outages)
        )
        since = min(outage.since for outage in facts.outages)
        return Component(name="Broker", state="failing", text=" ".join(texts), since=since)
    if backlog.oldest_request is not None and now - backlog.oldest_request > _LONG:
        text = f"{backlog.requests} requests are not confirmed yet."
        return Component(name="Broker", state="warning", text=text, since=backlog.oldest_request)
    return Component(name="Broker", state="ok", text=f"Connected. {backlog.requests} requests wait.")


def _reconciliation(progress: Progress, *, now: datetime) -> Component:
    name = "Reconciliation"
    if progress.due_at is not None and now - progress.due_at > _LONG:
        text = "Remotes are not compared in time: start more workers, or look for hosts that do not answer."
        return Component(name=name, state="warning", text=text, since=progress.due_at)
    if progress.failing:
        text = f"{progress.failing} of {progress.connections} remotes cannot be read."
        return Component(name=name, state="warning", text=text, since=progress.oldest)
    if not progress.connections:
        return Component(name=name, state="ok", text="No repository is connected.")
    return Component(name=name, state="ok", text=f"All {progress.connections} remotes can be read.")


def _sentence(reason: str) -> str:
    return f"{begin_sentence(reason)}."
