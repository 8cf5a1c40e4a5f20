"""Health probes: whether the process is alive, started and ready."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import sqlalchemy
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.api.problems import untyped
from gateway.errors import StoreUnavailable
from gateway.fetch.housekeeping import disk_trouble
from gateway.intake.group_commit import DeliveryWriter
from gateway.store.database import Database

_DISK_SECONDS = 3


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
    _disk: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "disk"), init=False)
    _probing: "asyncio.Future[str | None] | None" = field(default=None, init=False)
    _checking: asyncio.Task[None] | None = field(default=None, init=False)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/livez", self.live, methods=["GET"]),
            Route("/startupz", self.live, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
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


def _check_writable(conn: sqlalchemy.Connection) -> None:
    """Raise `StoreUnavailable` if the database refuses writes."""
    if conn.dialect.name == "sqlite":
        return  # the transaction took the write lock when it began
    if conn.execute(text("SHOW transaction_read_only")).scalar() == "on":
        raise StoreUnavailable("the database refuses writes: it is a standby, or set to read-only")
