"""Builds the role `worker`: fetch and plan, reconciliation, publishing and clean-up."""

import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from gateway.errors import StoreUnavailable
from gateway.fetch.housekeeping import Housekeeper
from gateway.messages.names import EXECUTION_CANCELLED
from gateway.packages.archive import Packages
from gateway.packages.builder import Packer
from gateway.packages.expiry import Expiry
from gateway.packages.tree import TreeReader
from gateway.provider_apis.apis import CheckedAddresses, ProviderApis
from gateway.provider_apis.entra_sign_in import EntraIdentities
from gateway.provider_apis.github_app_sign_in import GitHubApps
from gateway.provider_apis.sign_in import SignIn
from gateway.publish.brokers import Brokers, Tls
from gateway.publish.dead_letters import count_dead_letters
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.relay import Relay
from gateway.publish.reports import Hearing, ReportConsumer
from gateway.roles.parts import Parts
from gateway.store import work_queue
from gateway.store.claims import RESERVED, Claims
from gateway.store.database import Database
from gateway.store.events import EventOutbox
from gateway.store.executions import StoredRequest
from gateway.store.notify import Subscription
from gateway.store.outbox import outboxes
from gateway.worker.announcer import Announcer
from gateway.worker.app_maker import AppMaker
from gateway.worker.fetch_and_plan import FetchAndPlan
from gateway.worker.heartbeat import Heartbeat
from gateway.worker.identity_checker import IdentityChecker
from gateway.worker.identity_expiry import IdentityExpiry
from gateway.worker.notification_observer import NotificationObserver
from gateway.worker.notification_sender import NotificationSender
from gateway.worker.outcome_repair import OutcomeRepair
from gateway.worker.periodic import run_daily
from gateway.worker.platform_fetcher import PlatformFetcher
from gateway.worker.queue_repair import QueueRepair
from gateway.worker.reconciler import Reconciler
from gateway.worker.redelivery import Redelivery
from gateway.worker.registrar import Registrar
from gateway.worker.remotes import Remotes
from gateway.worker.retention import Retention
from gateway.worker.silence import SilenceWatcher
from gateway.worker.source_connector import SourceConnector
from gateway.worker.source_lister import SourceLister
from gateway.worker.status_sender import StatusSender
from gateway.worker.token_rotation import TokenRotation
from gateway.worker.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
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


def build_worker(parts: Parts, slot: int) -> Work:
    """Build the worker: fetch and plan, reconciliation, publishing and clean-up."""
    settings, database = parts.settings, parts.database
    # Mirrors are in the data folder: a process that restarts there has them, and takes the same name.
    process = f"{socket.gethostname()}:{settings.data_dir}{f'#{slot}' if slot else ''}"
    apis = ProviderApis(connector=CheckedAddresses(allow_loopback=settings.fetch_allow_http))
    entra = EntraIdentities(apis=apis, allow_http=settings.fetch_allow_http)
    sign_in = SignIn({"github-app": GitHubApps(apis=apis), "entra": entra})
    remotes = Remotes(mirrors=parts.mirrors, database=database, keyring=parts.keyring, sign_in=sign_in)
    packing = settings.data_dir / "packing"
    packing.mkdir(mode=0o700, exist_ok=True)
    keep = timedelta(days=settings.package_keep_days)
    outcome_repair = OutcomeRepair(database=database)
    expiry = Expiry(database=database, storage=parts.storage, folder=packing, keep=keep)
    runs: list[Callable[[], Coroutine[Any, Any, None]]] = [
        _build_crew(parts, remotes, process, packing).run,
        QueueRepair(database=database).run,
        outcome_repair.run,
        PlatformFetcher(database=database, keyring=parts.keyring, wakeups=parts.requests.subscribe()).run,
        _build_registrar(parts, apis, sign_in).run,
        *_of_sources(parts, apis, sign_in),
        _build_redelivery(parts, apis, sign_in).run,
        _build_identity_checker(parts, apis, sign_in).run,
        _build_status_sender(parts, apis, sign_in).run,
        *_of_notifications(parts, apis),
        partial(run_daily, outcome_repair.check_recent, of="outcomes"),
        partial(run_daily, expiry.run, of="packages"),
        partial(run_daily, _build_expiry(parts, apis, sign_in).run, of="identities"),
        *(reconciler.run for reconciler in _reconcilers(parts, remotes)),
        *(relay.run for relay in _relays(parts)),
        *_of_reports(parts),
    ]
    if slot == 0:
        runs.append(Housekeeper(git=parts.git, mirrors=parts.mirrors, budget=settings.mirror_budget).run)
    if not database.is_embedded:
        runs.append(Heartbeat(database=database, process=process).run)
    if settings.keep_days:
        retention = Retention(database=database, keep=timedelta(days=settings.keep_days))
        runs.append(partial(run_daily, retention.run, of="old deliveries"))
    return Work(process=process, runs=runs)


def _build_registrar(parts: Parts, apis: ProviderApis, sign_in: SignIn) -> Registrar:
    return Registrar(
        database=parts.database,
        keyring=parts.keyring,
        wakeups=parts.pushes.subscribe(),
        apis=apis,
        sign_in=sign_in,
        base_url=parts.settings.base_url,
    )


def _build_identity_checker(parts: Parts, apis: ProviderApis, sign_in: SignIn) -> IdentityChecker:
    return IdentityChecker(
        database=parts.database,
        keyring=parts.keyring,
        wakeups=parts.pushes.subscribe(),
        apis=apis,
        sign_in=sign_in,
    )


def _build_status_sender(parts: Parts, apis: ProviderApis, sign_in: SignIn) -> StatusSender:
    def subscribe() -> Subscription:
        """Wake at new requests, and at what runners report."""
        subscription = parts.requests.subscribe()
        parts.reports.add(subscription)
        return subscription

    return StatusSender(
        database=parts.database,
        keyring=parts.keyring,
        subscribe=subscribe,
        apis=apis,
        sign_in=sign_in,
        base_url=parts.settings.base_url,
    )


def _of_notifications(parts: Parts, apis: ProviderApis) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """Return what observes what people want to be told, and what sends it."""
    settings, brokers = parts.settings, Brokers.of(parts.settings)
    count = None if brokers is None else partial(count_dead_letters, brokers, parts.topology)
    observer = NotificationObserver(
        database=parts.database,
        count_dead_letters=count,
        dead_queue=parts.topology.dead_queue,
        base_url=settings.base_url,
    )
    sender = NotificationSender(
        database=parts.database, keyring=parts.keyring, wakeups=parts.pushes.subscribe(), apis=apis
    )
    return [observer.run, sender.run]


def _of_sources(
    parts: Parts, apis: ProviderApis, sign_in: SignIn
) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """Return what makes the Apps of sources, lists their repositories, and connects them."""
    settings = parts.settings
    lister = SourceLister(
        database=parts.database,
        keyring=parts.keyring,
        wakeups=parts.pushes.subscribe(),
        notify=parts.pushes.notify,
        apis=apis,
        sign_in=sign_in,
    )
    connector = SourceConnector(
        database=parts.database,
        keyring=parts.keyring,
        wakeups=parts.pushes.subscribe(),
        notify=parts.pushes.notify,
        apis=apis,
        sign_in=sign_in,
        allow_http=settings.fetch_allow_http,
        hosts=settings.fetch_hosts,
    )
    maker = AppMaker(
        database=parts.database,
        keyring=parts.keyring,
        wakeups=parts.pushes.subscribe(),
        notify=parts.pushes.notify,
        apis=apis,
    )
    return [lister.run, connector.run, maker.run]


def _build_expiry(parts: Parts, apis: ProviderApis, sign_in: SignIn) -> IdentityExpiry:
    rotation = TokenRotation(database=parts.database, keyring=parts.keyring, apis=apis, sign_in=sign_in)
    return IdentityExpiry(database=parts.database, rotation=rotation)


def _build_redelivery(parts: Parts, apis: ProviderApis, sign_in: SignIn) -> Redelivery:
    return Redelivery(
        database=parts.database,
        keyring=parts.keyring,
        wakeups=parts.pushes.subscribe(),
        apis=apis,
        sign_in=sign_in,
    )


def _build_packages(parts: Parts, folder: Path) -> Packages:
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


def _build_crew(parts: Parts, remotes: Remotes, process: str, packing: Path) -> Worker:
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


def _reconcilers(parts: Parts, remotes: Remotes) -> list[Reconciler]:
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


def _relays(parts: Parts) -> list[Relay]:
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
        tls=Tls.of(settings),
    )

    async def complete(stored: StoredRequest) -> StoredRequest:
        """Return a request with URLs that are valid from now on."""
        return parts.status_urls.completed(await parts.signer.publishable(stored), now=datetime.now(UTC))

    relays = [
        Relay(outbox, publisher(), parts.requests.subscribe(), complete=complete)
        for outbox in outboxes(parts.database, lanes=settings.relay_lanes)
    ]
    events = EventOutbox(parts.database, (EXECUTION_CANCELLED, *settings.amqp_events))
    relays.append(Relay(events, publisher(), parts.requests.subscribe(), what="event"))
    return relays


def _of_reports(parts: Parts) -> list[Callable[[], Coroutine[Any, Any, None]]]:
    """Return what takes the runners' reports from the broker, if there is one, and watches for silence."""
    settings = parts.settings
    hours, hearing = settings.lost_after_hours, Hearing()
    watcher = SilenceWatcher(
        database=parts.database,
        hearing=hearing,
        limit=timedelta(hours=hours) if hours else None,
        notify=parts.reports.notify,
    )
    brokers = Brokers.of(settings)
    if brokers is None:
        # Web processes take them.
        hearing.begin()
        return [watcher.run]
    consumer = ReportConsumer(
        database=parts.database,
        brokers=brokers,
        topology=parts.topology,
        hearing=hearing,
        notify=parts.reports.notify,
    )
    return [watcher.run, consumer.run]
