"""The composition root: builds the service from the settings. Read from top to bottom to see what runs."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from gateway.api.auth import AdminToken
from gateway.api.connections import Connections
from gateway.api.deliveries import Deliveries
from gateway.api.dry_run import DryRun
from gateway.api.endpoints import on_bug, on_error, on_http_error
from gateway.api.executions import Executions
from gateway.api.health import Health
from gateway.api.openapi import Operation
from gateway.api.packages import PackageFiles
from gateway.api.specifications import Contract
from gateway.crypto.keyring import Keyring
from gateway.crypto.signed_tokens import SignedTokens
from gateway.dashboard.pages import Pages
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.sessions import Sessions
from gateway.data_dir import DataDir
from gateway.errors import PushgateError, StoreUnavailable
from gateway.fetch.commit import CommitReader
from gateway.fetch.git import Git, require_git
from gateway.fetch.housekeeping import Housekeeper
from gateway.fetch.limits import GitLimits
from gateway.fetch.mirror import Mirrors
from gateway.intake.connection_cache import ConnectionCache
from gateway.intake.group_commit import DeliveryWriter
from gateway.intake.refusal_log import RefusalLog
from gateway.intake.webhook import WebhookEndpoint, WebhooksFirst
from gateway.packages.archive import Packages
from gateway.packages.builder import Packer
from gateway.packages.expiry import Expiry
from gateway.packages.signing import PackageSigner
from gateway.packages.storage import PackageStorage
from gateway.packages.tree import TreeReader
from gateway.plan.manifest import MAX_MANIFEST_BYTES
from gateway.publish.rabbitmq import RabbitMQ, Tls
from gateway.publish.relay import Relay
from gateway.publish.topology import Topology
from gateway.settings import Settings
from gateway.store import work_queue
from gateway.store.claims import RESERVED, Claims
from gateway.store.database import Database
from gateway.store.events import EventOutbox
from gateway.store.notify import Notifier, PostgresBridge
from gateway.store.outbox import outboxes
from gateway.worker.announcer import Announcer
from gateway.worker.fetch_and_plan import FetchAndPlan
from gateway.worker.heartbeat import Heartbeat
from gateway.worker.periodic import run_daily
from gateway.worker.platform_fetcher import PlatformFetcher
from gateway.worker.queue_repair import QueueRepair
from gateway.worker.reconciler import Reconciler
from gateway.worker.remotes import Remotes
from gateway.worker.retention import Retention
from gateway.worker.worker import Worker

log = structlog.get_logger()


class Service:
    """Everything that runs in one process of the role `web`, `worker` or `all`."""

    def __init__(self, settings: Settings, opened: DataDir, *, slot: int = 0) -> None:
        """Compose the parts of process `slot` of the data folder; nothing runs yet."""
        self.settings = settings
        self.closing = False
        self._tasks: list[asyncio.Task[None]] = []
        parts = _shared_parts(settings, opened)
        self._database = parts.database
        self._writer = DeliveryWriter(parts.database, notify=parts.pushes.notify)
        self._refusals = RefusalLog(parts.database)
        self._bridge = PostgresBridge(
            parts.database, {"pushgate_pushes": parts.pushes, "pushgate_requests": parts.requests}
        )
        self._worker = None if settings.role == "web" else _build_worker(parts, slot)
        health = Health(
            database=parts.database,
            writer=self._writer,
            is_closing=lambda: self.closing,
            scratch=None if settings.role == "web" else settings.data_dir / "mirrors",
            serves_webhooks=settings.role != "worker",
            has_broker=settings.amqp_url is not None,
        )
        web = None
        if settings.role != "worker":
            web = _build_web(parts, self._writer, self._refusals, is_closing=lambda: self.closing)
        self.application = self._build_application(web, health)

    def _build_application(self, web: "_Web | None", health: Health) -> ASGIApp:
        application = Starlette(
            routes=[*(web.routes if web else []), *health.routes()],
            exception_handlers={
                PushgateError: on_error,
                HTTPException: web.on_http_error if web else on_http_error,
                Exception: on_bug,
            },
            lifespan=self._lifespan,
        )
        # A redirect would use the host and scheme of the proxy's request instead of the public URL.
        application.router.redirect_slashes = False
        return WebhooksFirst(web.webhook, application) if web else application

    @asynccontextmanager
    async def _lifespan(self, _application: Starlette) -> AsyncIterator[None]:
        self._writer.start()
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
        await self._database.aclose()
        log.info("ended")

    def stop_working(self) -> None:
        """Claim nothing more, release the claimed work, and let the relay record confirmed messages."""
        for task in self._tasks:
            # Only once: a second cancellation would interrupt the release.
            if not task.cancelling():
                task.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The parts that the web and the worker roles share. None of them runs a task."""

    settings: Settings
    database: Database
    keyring: Keyring
    admin_token: str
    pushes: Notifier
    requests: Notifier
    git: Git
    mirrors: Mirrors
    reader: CommitReader
    storage: PackageStorage
    signed_tokens: SignedTokens
    signer: PackageSigner
    topology: Topology


def _shared_parts(settings: Settings, opened: DataDir) -> _Parts:
    git = _build_git(settings)
    storage = PackageStorage(settings.packages)
    url_valid = timedelta(days=settings.package_url_days)
    signed_tokens = SignedTokens(opened.keyring.package_url_key(), valid=url_valid)
    return _Parts(
        settings=settings,
        database=opened.database,
        keyring=opened.keyring,
        admin_token=opened.admin_token,
        pushes=Notifier(),
        requests=Notifier(),
        git=git,
        mirrors=Mirrors(git, settings.data_dir / "mirrors"),
        reader=CommitReader(git, manifest_limit=MAX_MANIFEST_BYTES, signers=settings.signers_file),
        storage=storage,
        signed_tokens=signed_tokens,
        signer=PackageSigner(
            database=opened.database,
            storage=storage,
            signed_tokens=signed_tokens,
            base_url=settings.base_url,
            valid=url_valid,
            keep=timedelta(days=settings.package_keep_days),
        ),
        topology=Topology.of(settings),
    )


def _build_git(settings: Settings) -> Git:
    if settings.role != "web":
        require_git()
    return Git(
        home=settings.data_dir / "git-home",
        allow_http=settings.fetch_allow_http,
        timeout=settings.fetch_timeout,
        hosts=settings.fetch_hosts,
        limits=GitLimits.of(settings),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Web:
    """The webhook endpoint of a process with the role `web`, its routes, and its handler of HTTP errors."""

    webhook: WebhookEndpoint
    routes: Sequence[BaseRoute]
    on_http_error: Callable[[Request, Exception], Awaitable[Response]]


def _build_web(
    parts: _Parts, writer: DeliveryWriter, refusals: RefusalLog, *, is_closing: Callable[[], bool]
) -> _Web:
    """Build the webhook endpoint, the REST API and the dashboard."""
    settings = parts.settings
    cache = ConnectionCache(parts.database, parts.keyring)
    webhook = WebhookEndpoint(
        cache, writer, refusals, body_limit=settings.body_limit, trusted_proxies=settings.trusted_proxies
    )
    token = AdminToken(parts.admin_token, trusted_proxies=settings.trusted_proxies)
    api = _build_api(parts, cache, token, is_closing=is_closing)
    operations = api.operations()
    contract = Contract(
        topology=parts.topology,
        mode=settings.amqp_content_mode,
        events=settings.amqp_events,
        operations=operations,
        base_url=settings.base_url,
    )
    pages = _build_pages(parts, api, token)
    return _Web(
        webhook=webhook,
        routes=[
            *(operation.route(token) for operation in operations),
            *contract.routes(),
            *pages.routes(),
        ],
        on_http_error=pages.on_http_error,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Api:
    """The endpoints of the REST API, by their subjects."""

    connections: Connections
    dry_run: DryRun
    deliveries: Deliveries
    executions: Executions
    files: PackageFiles

    def operations(self) -> list[Operation]:
        """Return the operations of all endpoints."""
        return [
            *self.connections.operations(),
            *self.dry_run.operations(),
            *self.deliveries.operations(),
            *self.executions.operations(),
            *self.files.operations(),
        ]


def _build_api(
    parts: _Parts, cache: ConnectionCache, token: AdminToken, *, is_closing: Callable[[], bool]
) -> _Api:
    settings, database = parts.settings, parts.database
    executions = Executions(
        database=database,
        storage=parts.storage,
        signer=parts.signer,
        requests=parts.requests,
        is_closing=is_closing,
        has_broker=settings.amqp_url is not None,
    )
    return _Api(
        connections=Connections(
            database=database,
            keyring=parts.keyring,
            cache=cache,
            pushes=parts.pushes,
            base_url=settings.base_url,
            allow_http=settings.fetch_allow_http,
            hosts=settings.fetch_hosts,
        ),
        dry_run=DryRun(
            database=database,
            mirrors=parts.mirrors,
            reader=parts.reader,
            max_request_bytes=settings.max_request_bytes,
        ),
        deliveries=Deliveries(database=database, pushes=parts.pushes, executions=executions),
        executions=executions,
        files=PackageFiles(
            database=database, storage=parts.storage, signed_tokens=parts.signed_tokens, token=token
        ),
    )


def _build_pages(parts: _Parts, api: _Api, token: AdminToken) -> Pages:
    base_url = parts.settings.base_url
    return Pages(
        connections=api.connections,
        deliveries=api.deliveries,
        executions=api.executions,
        sessions=Sessions(parts.keyring.session_key(), token=parts.admin_token, base_url=base_url),
        renderer=Renderer(base_url),
        token=token,
        has_broker=parts.settings.amqp_url is not None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """The tasks of a process with the role `worker`: each is a loop that runs until it is cancelled."""

    process: str
    runs: Sequence[Callable[[], Coroutine[Any, Any, None]]]

    async def take_over(self, database: Database) -> None:
        """Take over the work of a process that died on this data folder."""
        now = datetime.now(UTC)
        if database.is_embedded:
            await database.write(work_queue.take_over_everything, now=now)
            return
        # An unavailable or read-only server recovers later; until then leases expire by themselves.
        with suppress(StoreUnavailable):
            await database.write(work_queue.take_over, process=self.process, now=now)


def _build_worker(parts: _Parts, slot: int) -> _Work:
    """Build the worker: fetch and plan, reconciliation, publishing and clean-up."""
    settings, database = parts.settings, parts.database
    # Mirrors are in the data folder: a process that restarts there has them, and takes the same name.
    process = f"{socket.gethostname()}:{settings.data_dir}{f'#{slot}' if slot else ''}"
    remotes = Remotes(mirrors=parts.mirrors, database=database, keyring=parts.keyring)
    packing = settings.data_dir / "packing"
    packing.mkdir(mode=0o700, exist_ok=True)
    keep = timedelta(days=settings.package_keep_days)
    expiry = Expiry(database=database, storage=parts.storage, folder=packing, keep=keep)
    runs: list[Callable[[], Coroutine[Any, Any, None]]] = [
        _build_crew(parts, remotes, process, packing).run,
        QueueRepair(database=database).run,
        PlatformFetcher(database=database, keyring=parts.keyring, wakeups=parts.requests.subscribe()).run,
        partial(run_daily, expiry.run, of="packages"),
        *(reconciler.run for reconciler in _reconcilers(parts, remotes)),
        *(relay.run for relay in _relays(parts)),
    ]
    if slot == 0:
        runs.append(Housekeeper(git=parts.git, mirrors=parts.mirrors, budget=settings.mirror_budget).run)
    if not database.is_embedded:
        runs.append(Heartbeat(database=database, process=process).run)
    if settings.keep_days:
        retention = Retention(database=database, keep=timedelta(days=settings.keep_days))
        runs.append(partial(run_daily, retention.run, of="old deliveries"))
    return _Work(process=process, runs=runs)


def _build_packages(parts: _Parts, folder: Path) -> Packages:
    settings = parts.settings
    return Packages(
        database=parts.database,
        storage=parts.storage,
        mirrors=parts.mirrors,
        reader=TreeReader(parts.git, allow_http=settings.fetch_allow_http, hosts=settings.fetch_hosts),
        packer=Packer(
            git=parts.git,
            warn_above=settings.package_warn_bytes,
            most=settings.package_max_bytes,
            most_unpacked=settings.package_max_unpacked_bytes,
        ),
        folder=folder,
    )


def _build_crew(parts: _Parts, remotes: Remotes, process: str, packing: Path) -> Worker:
    settings = parts.settings
    packages = _build_packages(parts, packing)
    stages = FetchAndPlan(
        mirrors=parts.mirrors,
        remotes=remotes,
        reader=parts.reader,
        packages=packages,
        max_request_bytes=settings.max_request_bytes,
    )
    claims = Claims(
        process=process,
        per_project=settings.fetches_per_project,
        per_host=settings.fetches_per_host,
        places=settings.concurrency,
    )
    return Worker(
        name=f"{socket.gethostname()}-{os.getpid()}-{datetime.now(UTC):%H%M%S%f}",
        database=parts.database,
        claims=claims,
        stages=stages,
        wakeups=parts.pushes.subscribe(),
        notify=parts.requests.notify,
        announce=Announcer(names=() if settings.amqp_url is None else settings.amqp_events),
        keeping=parts.mirrors.keeping,
        # A few more, reserved for hosts without running work: see `Claims`.
        concurrency=settings.concurrency + RESERVED,
    )


def _reconcilers(parts: _Parts, remotes: Remotes) -> list[Reconciler]:
    settings = parts.settings
    return [
        Reconciler(
            database=parts.database,
            remotes=remotes,
            wakeups=parts.pushes.subscribe(),
            notify=parts.pushes.notify,
            every=settings.reconcile_every,
            grace=settings.reconcile_grace,
            per_host=settings.fetches_per_host,
        )
        for _ in range(settings.reconcile_concurrency)
    ]


def _relays(parts: _Parts) -> list[Relay]:
    """Return the relays, each with its own connection; without a broker there are none."""
    settings = parts.settings
    if settings.amqp_url is None:
        return []
    publisher = partial(
        RabbitMQ,
        settings.amqp_url.get_secret_value(),
        public_url=settings.base_url,
        topology=parts.topology,
        mode=settings.amqp_content_mode,
        tls=Tls(ca=settings.amqp_ca_file, certificate=settings.amqp_cert_file, key=settings.amqp_key_file),
    )
    relays = [
        Relay(outbox, publisher(), parts.requests.subscribe(), complete=parts.signer.publishable)
        for outbox in outboxes(parts.database, lanes=settings.relay_lanes)
    ]
    if settings.amqp_events:
        events = EventOutbox(parts.database)
        relays.append(Relay(events, publisher(), parts.requests.subscribe(), what="event"))
    return relays
