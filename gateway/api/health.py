"""Health probes and metrics: whether the process is alive, started and ready."""

import asyncio
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Self

import sqlalchemy
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.problems import untyped
from gateway.errors import StoreUnavailable
from gateway.fetch.housekeeping import disk_trouble
from gateway.intake.group_commit import DeliveryWriter
from gateway.metrics import (
    IDENTITY_EXPIRY,
    OLDEST_EVENT,
    OLDEST_PENDING,
    OLDEST_REQUEST,
    PENDING_EVENTS,
    PENDING_REQUESTS,
    PENDING_UPDATES,
    SCRATCH_WRITABLE,
    SILENT,
    WEBHOOKS,
    exposition,
)
from gateway.store import identities, reconciliations, registrations, work_queue
from gateway.store.database import Database
from gateway.store.work_queue import Backlog
from gateway.threads import PROBES

_DISK_SECONDS = 3
_STORE_GAUGES = (
    PENDING_UPDATES,
    OLDEST_PENDING,
    PENDING_REQUESTS,
    PENDING_EVENTS,
    OLDEST_REQUEST,
    OLDEST_EVENT,
    IDENTITY_EXPIRY,
    SILENT,
    *(WEBHOOKS.labels(state) for state in registrations.WEBHOOK_STATES),
)


@dataclass(slots=True, kw_only=True)
class Health:
    """The probes. Outages of the broker or of a git host do not affect readiness: the store keeps the work.

    `scratch` is the folder of the mirrors, in a process that fetches. If it is not writable, a process that
    only fetches is not ready. A process that `serves_webhooks` stays ready, because deliveries are stored,
    and reports the problem in the answer.
    """

    database: Database
    writer: DeliveryWriter
    is_closing: Callable[[], bool]
    scratch: Path | None = None
    serves_webhooks: bool = True
    has_broker: bool = True
    _disk: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "disk"), init=False)
    _probing: "asyncio.Future[str | None] | None" = field(default=None, init=False)
    _checking: asyncio.Task[None] | None = field(default=None, init=False)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/livez", self.live, methods=["GET"]),
            Route("/startupz", self.live, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def live(self, _request: Request) -> Response:
        """`GET /livez`, `GET /startupz`: the process answers, which it does only after its start."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """`GET /readyz`: deliveries can be stored, and the process is not shutting down."""
        if self.is_closing():
            return untyped(503, "Not ready", "the process is shutting down")
        if not self.writer.healthy:
            return untyped(503, "Not ready", "deliveries could not be stored recently")
        try:
            await self._check_store()
        except StoreUnavailable as error:
            return untyped(503, "Not ready", str(error))
        trouble = await self.disk_trouble()
        if trouble is None:
            return JSONResponse({"status": "ok"})
        if not self.serves_webhooks:
            return untyped(503, "Not ready", trouble)
        return JSONResponse({"status": "ok", "fetching": trouble})

    async def disk_trouble(self) -> str | None:
        """Return why nothing can be fetched to this machine; concurrent requests share one check."""
        if self.scratch is None:
            return None
        if self._probing is None or self._probing.done():
            loop = asyncio.get_running_loop()
            self._probing = loop.run_in_executor(self._disk, disk_trouble, self.scratch)
        try:
            return await asyncio.wait_for(asyncio.shield(self._probing), _DISK_SECONDS)
        except TimeoutError:
            return f"nothing can be fetched: the disk of {self.scratch} does not answer"

    async def _check_store(self) -> None:
        """Raise `StoreUnavailable` if nothing can be written; concurrent requests share one check.

        Otherwise the probes would queue up while the database hangs.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self.database.write_probe(_check_writable))
        await asyncio.shield(self._checking)

    async def metrics(self, _request: Request) -> Response:
        """`GET /metrics`: the counters of this port, and the backlog of the store."""
        try:
            found = await self.database.read_probe(_StoreState.of)
        except StoreUnavailable:
            # The backlog is unknown; the counters of the process are exposed nevertheless.
            for gauge in _STORE_GAUGES:
                gauge.set(math.nan)
        else:
            found.report(has_broker=self.has_broker)
        SCRATCH_WRITABLE.set(await self.disk_trouble() is None)
        return Response(await PROBES.run(exposition), media_type=CONTENT_TYPE_LATEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoreState:
    """What the gauges show of the whole store."""

    backlog: Backlog
    expiry: datetime | None
    webhooks: Mapping[str, int]
    silent: int

    @classmethod
    def of(cls, conn: sqlalchemy.Connection) -> Self:
        """Read the state."""
        return cls(
            backlog=work_queue.backlog(conn),
            expiry=identities.first_expiry(conn),
            webhooks=registrations.count_states(conn, now=datetime.now(UTC)),
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
        for state, count in self.webhooks.items():
            WEBHOOKS.labels(state).set(count)


def _age(moment: datetime | None) -> float:
    return 0 if moment is None else (datetime.now(UTC) - moment).total_seconds()


def _check_writable(conn: sqlalchemy.Connection) -> None:
    """Raise `StoreUnavailable` if the database refuses writes."""
    if conn.dialect.name == "sqlite":
        return  # the transaction took the write lock when it began
    if conn.execute(text("SHOW transaction_read_only")).scalar() == "on":
        raise StoreUnavailable("the database refuses writes: it is a standby, or set to read-only")
