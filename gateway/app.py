"""The composition root: builds the service from the settings. Read from top to bottom to see what runs."""

import asyncio
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from gateway.api.endpoints import on_http_error
from gateway.api.health import Health
from gateway.api.http_meter import HttpMeter
from gateway.api.problems import on_bug, on_error
from gateway.api.scrape import Scrape
from gateway.data_dir import DataDir
from gateway.errors import PushgateError
from gateway.intake.group_commit import DeliveryWriter
from gateway.intake.refusal_log import RefusalLog
from gateway.intake.uptime import Uptime
from gateway.intake.webhook import WebhooksFirst
from gateway.metrics import BUILD_INFO
from gateway.roles.parts import Parts, shared_parts
from gateway.roles.tracing import TraceExport
from gateway.roles.web import Web, build_web
from gateway.roles.worker import build_worker
from gateway.settings import Settings
from gateway.store.measures import measure
from gateway.store.notify import PostgresBridge

log = structlog.get_logger()


class Service:
    """Everything that runs in one process of the role `web`, `worker` or `all`."""

    def __init__(self, settings: Settings, opened: DataDir, *, slot: int = 0) -> None:
        """Compose the parts of process `slot` of the data folder; nothing runs yet."""
        self.settings = settings
        self.closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._traces = TraceExport(settings.role)
        parts = shared_parts(settings, opened)
        measure(parts.database)
        _describe(parts)
        self._database = parts.database
        self._writer = DeliveryWriter(parts.database, notify=parts.pushes.notify)
        self._refusals = RefusalLog(parts.database)
        self._uptime = Uptime(parts.database, notify=parts.pushes.notify)
        self._bridge = PostgresBridge(
            parts.database,
            {
                "pushgate_pushes": parts.pushes,
                "pushgate_requests": parts.requests,
                "pushgate_reports": parts.reports,
            },
        )
        self._worker = None if settings.role == "web" else build_worker(parts, slot)
        health = Health(
            database=parts.database,
            writer=self._writer,
            is_closing=lambda: self.closing,
            scratch=None if settings.role == "web" else settings.data_dir / "mirrors",
            serves_webhooks=settings.role != "worker",
        )
        scrape = _build_scrape(parts, health)
        web = None
        if settings.role != "worker":
            web = build_web(
                parts,
                self._writer,
                self._refusals,
                self._uptime,
                is_closing=lambda: self.closing,
                disk_trouble=health.disk_trouble,
            )
        self.application = HttpMeter(self._build_application(web, health, scrape))

    def _build_application(self, web: Web | None, health: Health, scrape: Scrape) -> ASGIApp:
        application = Starlette(
            routes=[*(web.routes if web else []), *health.routes(), *scrape.routes()],
            exception_handlers={
                PushgateError: on_error,
                HTTPException: web.pages.errors.on_http_error if web else on_http_error,
                Exception: web.pages.errors.on_bug if web else on_bug,
            },
            lifespan=self._lifespan,
        )
        # A redirect would use the host and scheme of the proxy's request instead of the public URL.
        application.router.redirect_slashes = False
        return WebhooksFirst(web.webhook, application) if web else application

    @asynccontextmanager
    async def _lifespan(self, _application: Starlette) -> AsyncIterator[None]:
        self._traces.start()
        self._writer.start()
        if self.settings.role != "worker":
            self._uptime.start()
        if self._worker is not None:
            await self._worker.take_over(self._database)
            self._tasks = [asyncio.create_task(run()) for run in self._worker.runs]
        if not self._database.is_embedded:
            self._tasks.append(asyncio.create_task(self._bridge.run()))
        yield
        self.stop_working()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._writer.stop()
        await self._refusals.stop()
        await self._uptime.stop()
        await self._database.aclose()
        await self._traces.stop()
        log.info("ended")

    def stop_working(self) -> None:
        """Claim nothing more, release the claimed work, and let the relay record confirmed messages."""
        for task in self._tasks:
            # Only once: a second cancellation would interrupt the release.
            if not task.cancelling():
                task.cancel()


def _build_scrape(parts: Parts, health: Health) -> Scrape:
    folders = {"data": parts.settings.data_dir, "mirrors": health.scratch}
    return Scrape(
        database=parts.database,
        disk_trouble=health.disk_trouble,
        folders={label: folder for label, folder in folders.items() if folder is not None},
        is_worker=health.scratch is not None,
        has_broker=parts.settings.amqp_url is not None,
    )


def _describe(parts: Parts) -> None:
    """Set the metric that says what runs here."""
    BUILD_INFO.labels(
        version=version("pushgate"),
        python=platform.python_version(),
        git=parts.git_version,
        role=parts.settings.role,
        database="sqlite" if parts.database.is_embedded else "postgresql",
    ).set(1)
