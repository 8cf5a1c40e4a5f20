"""The composition root: settings in, running service out. Read it from top to bottom to see what runs."""

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from types import FrameType

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from gateway.api.auth import AdminToken
from gateway.api.connections import Api
from gateway.api.dry_run import DryRun
from gateway.api.endpoints import on_bug, on_error, on_http_error
from gateway.api.health import Health
from gateway.api.packages import PackageFiles
from gateway.api.records import Records
from gateway.api.specifications import Contract
from gateway.crypto.signed_tokens import Tickets
from gateway.dashboard.pages import Pages
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.sessions import Sessions
from gateway.data_dir import Opened, occupied
from gateway.errors import PushgateError, StoreUnavailable
from gateway.fetch.commit import CommitReader
from gateway.fetch.git import Git
from gateway.fetch.housekeeping import Housekeeper
from gateway.fetch.limits import GitLimits
from gateway.fetch.mirror import Mirrors
from gateway.intake.connection_cache import Book
from gateway.intake.group_commit import Accepter, prepare_interpreter
from gateway.intake.webhook import Door
from gateway.packages.archive import Expiry, Packages
from gateway.packages.builder import Packer
from gateway.packages.storage import Depot
from gateway.packages.tree import TreeReader
from gateway.plan.manifest import LARGEST
from gateway.publish.rabbitmq import RabbitMQ, Tls
from gateway.publish.relay import Relay
from gateway.publish.topology import Topology
from gateway.server.http_limits import ClientLimits, allow_open_files, limited
from gateway.server.listener import listen
from gateway.settings import Settings
from gateway.store import work_queue
from gateway.store.claims import RESERVED, Claims
from gateway.store.database import Database
from gateway.store.events import EventOutbox
from gateway.store.executions import Outbox
from gateway.store.notify import Doorbell, Wire
from gateway.store.work_queue import WorkQueue
from gateway.worker.fetch_and_plan import Announcer, FetchAndPlan, Remotes
from gateway.worker.heartbeat import Presence
from gateway.worker.periodic import daily
from gateway.worker.platform_fetcher import PlatformFetcher
from gateway.worker.reconciler import Reconciler
from gateway.worker.retention import Retention
from gateway.worker.worker import Worker

log = structlog.get_logger()

# How long requests that are under way may take to end after a SIGTERM, in seconds.
_GRACE = 10


class Service:
    """Everything that runs in one process."""

    def __init__(self, settings: Settings, opened: Opened) -> None:
        """Put the parts together; nothing runs before the application starts."""
        self.settings = settings
        self.closing = False
        self._tasks: list[asyncio.Task[None]] = []
        database, vault = opened.database, opened.vault
        self._database = database
        pushes, requests = Doorbell(), Doorbell()
        self._wire = Wire(database, {"pushgate_pushes": pushes, "pushgate_requests": requests})

        book = Book(database, vault)
        self._accepter = Accepter(database, rings=pushes.ring)
        door = Door(
            book,
            self._accepter,
            body_limit=settings.body_limit,
            trusted_proxies=settings.trusted_proxies,
        )

        git = Git(
            home=settings.data_dir / "git-home",
            allow_http=settings.fetch_allow_http,
            timeout=settings.fetch_timeout,
            hosts=settings.fetch_hosts,
            limits=GitLimits(
                memory=settings.git_max_memory_bytes,
                cpu=settings.git_max_cpu_seconds,
                file_size=settings.git_max_file_bytes,
            ),
        )
        mirrors = Mirrors(git, settings.data_dir / "mirrors")
        remotes = Remotes(mirrors=mirrors, database=database, vault=vault)
        self._housekeeper = Housekeeper(git=git, mirrors=mirrors, budget=settings.mirror_budget)
        depot = Depot(settings.packages)
        tickets = Tickets(vault.ticket_key(), valid=timedelta(days=settings.package_url_days))
        half_made = settings.data_dir / "packing"
        half_made.mkdir(mode=0o700, exist_ok=True)
        packages = Packages(
            database=database,
            depot=depot,
            mirrors=mirrors,
            reader=TreeReader(git, allow_http=settings.fetch_allow_http, hosts=settings.fetch_hosts),
            packer=Packer(
                git=git,
                warn_above=settings.package_warn_bytes,
                most=settings.package_max_bytes,
                most_unpacked=settings.package_max_unpacked_bytes,
            ),
            tickets=tickets,
            folder=half_made,
            base_url=settings.base_url,
            url_valid=timedelta(days=settings.package_url_days),
        )
        self._expiry = Expiry(
            database=database,
            depot=depot,
            folder=half_made,
            keep=timedelta(days=settings.package_keep_days),
        )
        self._retention = Retention(database=database, keep=timedelta(days=settings.keep_days))
        token = AdminToken(opened.admin_token, trusted_proxies=settings.trusted_proxies)
        files = PackageFiles(database=database, depot=depot, tickets=tickets, token=token)
        reader = CommitReader(git, manifest_limit=LARGEST, signers=settings.signers_file)
        steps = FetchAndPlan(mirrors=mirrors, remotes=remotes, reader=reader, packages=packages)
        # Mirrors lie in the data folder: whoever starts there again has them, and goes by the same name.
        process = f"{socket.gethostname()}:{settings.data_dir}"
        claims = Claims(
            process=process,
            per_project=settings.fetches_per_project,
            per_host=settings.fetches_per_host,
            places=settings.concurrency,
        )
        self._presence = Presence(database=database, process=process)
        name = f"{socket.gethostname()}-{datetime.now(UTC):%H%M%S%f}"
        self._workers = [
            Worker(
                name=f"{name}-{number}",
                queue=WorkQueue(database, claims),
                steps=steps,
                news=pushes.listener(),
                rings=requests.ring,
                announce=Announcer(names=() if settings.amqp_url is None else settings.amqp_events),
            )
            # Some more, for hosts at which nothing is done yet: see `Claims`.
            for number in range(settings.concurrency + RESERVED)
        ]
        self._reconcilers = [
            Reconciler(
                database=database,
                remotes=remotes,
                news=pushes.listener(),
                rings=pushes.ring,
                every=settings.reconcile_every,
                grace=settings.reconcile_grace,
                per_host=settings.fetches_per_host,
            )
            for _ in range(settings.reconcile_concurrency)
        ]
        self._platforms = PlatformFetcher(database=database, vault=vault, news=requests.listener())
        topology = Topology(
            exchange=settings.amqp_exchange,
            queue=settings.amqp_queue,
            lanes=settings.amqp_lanes,
            ordered=settings.amqp_ordered,
            passive=not settings.amqp_declare,
        )
        self._relays = _relays(settings, topology, database, requests)

        api = Api(
            database=database,
            vault=vault,
            book=book,
            pushes=pushes,
            base_url=settings.base_url,
            allow_http=settings.fetch_allow_http,
            hosts=settings.fetch_hosts,
        )
        records = Records(
            database=database,
            pushes=pushes,
            requests=requests,
            is_closing=lambda: self.closing,
            has_broker=settings.amqp_url is not None,
        )
        dry_run = DryRun(database=database, mirrors=mirrors, reader=reader)
        operations = [
            *api.operations(),
            *dry_run.operations(),
            *records.operations(),
            *files.operations(),
        ]
        contract = Contract(
            topology=topology,
            mode=settings.amqp_content_mode,
            events=settings.amqp_events,
            operations=operations,
        )
        pages = Pages(
            api=api,
            records=records,
            sessions=Sessions(vault.session_key(), token=opened.admin_token, base_url=settings.base_url),
            renderer=Renderer(settings.base_url),
            token=token,
            has_broker=settings.amqp_url is not None,
        )
        health = Health(
            database=database,
            accepter=self._accepter,
            is_closing=lambda: self.closing,
            scratch=None if settings.role == "web" else settings.data_dir / "mirrors",
            has_door=settings.role != "worker",
            has_broker=settings.amqp_url is not None,
        )
        web = [
            # First, because a request is held against one route after the other.
            Route("/hooks/{connection}", door),
            *(operation.route(token) for operation in operations),
            *contract.routes(),
            *pages.routes(),
        ]
        self.application = Starlette(
            routes=[
                *([] if settings.role == "worker" else web),
                *health.routes(),
            ],
            exception_handlers={
                PushgateError: on_error,
                HTTPException: on_http_error if settings.role == "worker" else pages.on_http_error,
                Exception: on_bug,
            },
            lifespan=self._lifespan,
        )
        # It would send on to the host and scheme that a proxy asks with, out of the public URL.
        self.application.router.redirect_slashes = False

    @asynccontextmanager
    async def _lifespan(self, _application: Starlette) -> AsyncIterator[None]:
        self._accepter.start()
        if self.settings.role != "web":
            self._tasks = await self._start_working()
        if not self._database.is_embedded:
            self._tasks.append(asyncio.create_task(self._wire.run()))
        yield
        self.stop_working()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._accepter.stop()
        await self._database.aclose()
        log.info("ended")

    def stop_working(self) -> None:
        """Claim nothing more, hand back what is under way, and let the relay write down what is confirmed."""
        for task in self._tasks:
            # Once: a second time would cancel the handing back.
            if not task.cancelling():
                task.cancel()

    async def _start_working(self) -> list[asyncio.Task[None]]:
        """Start all that is done behind the door, first of all what a process that died here had begun."""
        now = datetime.now(UTC)
        if self._database.is_embedded:
            await self._database.write(partial(work_queue.take_over_everything, now=now))
        else:
            # A server that is away, or only reads, will be back: until then leases expire by themselves.
            with suppress(StoreUnavailable):
                await self._database.write(
                    partial(work_queue.take_over, process=self._presence.process, now=now)
                )
        tasks = [asyncio.create_task(worker.run()) for worker in self._workers]
        if not self._database.is_embedded:
            tasks.append(asyncio.create_task(self._presence.run()))
        tasks.append(asyncio.create_task(self._housekeeper.run()))
        tasks.append(asyncio.create_task(self._platforms.run()))
        tasks.append(asyncio.create_task(daily(self._expiry.sweep, of="packages")))
        if self.settings.keep_days:
            tasks.append(asyncio.create_task(daily(self._retention.sweep, of="old deliveries")))
        tasks += [asyncio.create_task(reconciler.run()) for reconciler in self._reconcilers]
        tasks += [asyncio.create_task(relay.run()) for relay in self._relays]
        return tasks


def _relays(settings: Settings, topology: Topology, database: Database, news: Doorbell) -> list[Relay]:
    """Return what publishes, each over a connection of its own; without a broker there is nothing."""
    if settings.amqp_url is None:
        return []
    publisher = partial(
        RabbitMQ,
        settings.amqp_url.get_secret_value(),
        public_url=settings.base_url,
        topology=topology,
        mode=settings.amqp_content_mode,
        tls=Tls(ca=settings.amqp_ca_file, certificate=settings.amqp_cert_file, key=settings.amqp_key_file),
    )
    relays = [Relay(Outbox(database), publisher(), news.listener())]
    if settings.amqp_events:
        relays.append(Relay(EventOutbox(database), publisher(), news.listener(), what="event"))
    return relays


class _Server(uvicorn.Server):
    """uvicorn, which tells the service when it has begun to listen and when it is asked to end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        await super().startup(list(sockets) if sockets else None)
        if self.should_exit:
            return
        parent = multiprocessing.parent_process()
        if parent is not None:
            asyncio.get_running_loop().add_reader(parent.sentinel, self._end_as_an_orphan, parent.sentinel)
        settings = self._service.settings
        log.info(
            "listening",
            address=f"{settings.host}:{settings.port}",
            hooks=f"{settings.base_url}/hooks/…",
            dashboard=f"{settings.base_url}/",
            data=str(settings.data_dir),
            pid=os.getpid(),
            broker="none: requests stay in the store" if settings.amqp_url is None else "RabbitMQ",
        )

    def _end_as_an_orphan(self, sentinel: int) -> None:
        """End in order, because the supervisor that would have asked for it was killed."""
        asyncio.get_running_loop().remove_reader(sentinel)
        log.error("the supervisor of this process is gone: it ends as well")
        self.handle_exit(signal.SIGTERM, None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # At once: requests under way may take their time to end.
        self._service.stop_working()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT as a wish to end in order; uvicorn itself would then die of them."""
        before = {
            number: signal.signal(number, self.handle_exit) for number in uvicorn.server.HANDLED_SIGNALS
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Nothing else here: a handler runs in the middle of anything, a log line included.
        self._service.closing = True
        super().handle_exit(sig, frame)


def serve(settings: Settings, opened: Opened, *, listener: socket.socket | None = None) -> None:
    """Run the service until SIGTERM or SIGINT; on a socket of its own, if none is given.

    Raises `SettingError` where another process works on the data folder, or the port is taken.
    """
    works_here = settings.role != "web" or opened.database.is_embedded
    # The service closes the database when it ends, but not where it never begins.
    with opened, occupied(settings) if works_here else nullcontext(), listener or listen(settings) as bound:
        # Where any free port was asked for, it is known only now.
        port = bound.getsockname()[1]
        _serve(Service(settings.model_copy(update={"port": port}), opened), bound)


def _serve(service: Service, listener: socket.socket) -> None:
    prepare_interpreter()
    settings = service.settings
    connections = allow_open_files(settings.http_connections)
    if connections < settings.http_connections:
        log.warning("fewer HTTP connections than configured: few files may be open", connections=connections)
    config = uvicorn.Config(
        service.application,
        loop="uvloop",
        http=limited(ClientLimits(connections=connections, keep_alive=settings.http_keep_alive)),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        timeout_keep_alive=settings.http_keep_alive,
        timeout_graceful_shutdown=_GRACE,
        backlog=2048,
    )
    _Server(config, service).run(sockets=[listener])
