"""`GET /metrics`: what this port has counted, and what is read at each scrape: the store, and the disks."""

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Self

import sqlalchemy
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.api.exposition import exposition
from gateway.errors import StoreUnavailable
from gateway.metrics import (
    DISK_FREE,
    DISK_SIZE,
    IDENTITY_EXPIRY,
    OLDEST_EVENT,
    OLDEST_PENDING,
    OLDEST_REQUEST,
    PENDING_EVENTS,
    PENDING_REQUESTS,
    PENDING_UPDATES,
    QUEUE,
    RECONCILIATION_LAG,
    SCRATCH_WRITABLE,
    SILENT,
    WEBHOOKS,
    WORKERS_ALIVE,
)
from gateway.store import claims, identities, ready_queue, reconciliations, registrations, work_queue
from gateway.store.database import Database
from gateway.store.work_queue import Backlog
from gateway.threads import PROBES

# What was read stays valid for ten times as long as reading it took: scrapes occupy a tenth of a connection
# at most, however much waits, and however many clients scrape.
_REST = 10.0
_MAX_REST_SECONDS = 5.0
_DISK_SECONDS = 3.0
_STORE_GAUGES = (
    PENDING_UPDATES,
    OLDEST_PENDING,
    PENDING_REQUESTS,
    PENDING_EVENTS,
    OLDEST_REQUEST,
    OLDEST_EVENT,
    IDENTITY_EXPIRY,
    SILENT,
    RECONCILIATION_LAG,
    WORKERS_ALIVE,
    *(QUEUE.labels(state) for state in ready_queue.STATES),
    *(WEBHOOKS.labels(state) for state in registrations.WEBHOOK_STATES),
)


@dataclass(slots=True, kw_only=True)
class Scrape:
    """The endpoint of Prometheus. `folders` are those whose disks are measured, by their labels.

    `disk_trouble` returns why nothing can be fetched. In an embedded store, this process is the only one, and
    `is_worker` is whether it works.
    """

    database: Database
    disk_trouble: Callable[[], Awaitable[str | None]]
    folders: Mapping[str, Path]
    is_worker: bool = True
    has_broker: bool = True
    _disks: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "disks"), init=False)
    _measuring: "asyncio.Future[None] | None" = field(default=None, init=False)
    _reading: "asyncio.Task[StoreState] | None" = field(default=None, init=False)
    _fresh_until: float = field(default=0.0, init=False)

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/metrics", self.metrics, methods=["GET"])]

    async def metrics(self, _request: Request) -> Response:
        """`GET /metrics`: the counters of this port, and the state of the store and of the disks."""
        try:
            found = await self._store_state()
        except StoreUnavailable:
            # The state is unknown; the counters of the process are exposed nevertheless.
            for gauge in _STORE_GAUGES:
                gauge.set(math.nan)
        else:
            found.report(has_broker=self.has_broker)
            if self.database.is_embedded:
                WORKERS_ALIVE.set(self.is_worker)
        SCRATCH_WRITABLE.set(await self.disk_trouble() is None)
        await self._measure_disks()
        return Response(await PROBES.run(exposition), media_type=CONTENT_TYPE_LATEST)

    async def _store_state(self) -> "StoreState":
        """Return the state of the store; scrapes share what was read a moment ago."""
        if self._reading is None or (self._reading.done() and time.monotonic() >= self._fresh_until):
            self._reading = asyncio.create_task(self._read())
        return await asyncio.shield(self._reading)

    async def _read(self) -> "StoreState":
        began_at = time.monotonic()
        try:
            return await self.database.read_probe(StoreState.of)
        finally:
            now = time.monotonic()
            self._fresh_until = now + min((now - began_at) * _REST, _MAX_REST_SECONDS)

    async def _measure_disks(self) -> None:
        """Measure the disks; leave the values as they are while one does not answer."""
        if self._measuring is None or self._measuring.done():
            loop = asyncio.get_running_loop()
            self._measuring = loop.run_in_executor(self._disks, _measure, self.folders)
        await asyncio.wait([self._measuring], timeout=_DISK_SECONDS)


def _measure(folders: Mapping[str, Path]) -> None:
    for label, folder in folders.items():
        try:
            found = os.statvfs(folder)
        except OSError:
            free = size = math.nan
        else:
            free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        DISK_FREE.labels(label).set(free)
        DISK_SIZE.labels(label).set(size)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreState:
    """What the gauges show of the whole store."""

    backlog: Backlog
    queue: Mapping[str, int]
    reconciliation_due_at: datetime | None
    workers: int
    expiry: datetime | None
    webhooks: Mapping[str, int]
    silent: int

    @classmethod
    def of(cls, conn: sqlalchemy.Connection) -> Self:
        """Read the state."""
        now = datetime.now(UTC)
        return cls(
            backlog=work_queue.backlog(conn),
            queue=ready_queue.count_states(conn, now=now),
            reconciliation_due_at=reconciliations.due_since(conn, now=now),
            workers=len(claims.alive(conn, now=now)),
            expiry=identities.first_expiry(conn),
            webhooks=registrations.count_states(conn, now=now),
            silent=reconciliations.count_silent(conn),
        )

    def report(self, *, has_broker: bool) -> None:
        """Set the gauges."""
        backlog = self.backlog
        PENDING_UPDATES.set(backlog.updates)
        OLDEST_PENDING.set(_age(backlog.oldest))
        OLDEST_REQUEST.set(_age(backlog.oldest_request) if has_broker else 0)
        OLDEST_EVENT.set(_age(backlog.oldest_event) if has_broker else 0)
        PENDING_REQUESTS.set(backlog.requests)
        PENDING_EVENTS.set(backlog.events)
        IDENTITY_EXPIRY.set(math.inf if self.expiry is None else self.expiry.timestamp())
        SILENT.set(self.silent)
        RECONCILIATION_LAG.set(_age(self.reconciliation_due_at))
        WORKERS_ALIVE.set(self.workers)
        for state, count in self.queue.items():
            QUEUE.labels(state).set(count)
        for state, count in self.webhooks.items():
            WEBHOOKS.labels(state).set(count)


def _age(moment: datetime | None) -> float:
    return 0 if moment is None else max(0.0, (datetime.now(UTC) - moment).total_seconds())
