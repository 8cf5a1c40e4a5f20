"""Builds the role `web`: the webhook endpoint, the REST API and the dashboard."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from starlette.routing import BaseRoute

from gateway.api.auth import AdminToken
from gateway.api.connections import Connections
from gateway.api.dead_letters import DeadLetters
from gateway.api.deliveries import Deliveries
from gateway.api.dry_run import DryRun
from gateway.api.executions import Executions
from gateway.api.health_overview import HealthOverview
from gateway.api.idempotency import Idempotency
from gateway.api.identities import Identities
from gateway.api.notification_channels import NotificationChannels
from gateway.api.openapi import Operation
from gateway.api.packages import PackageFiles
from gateway.api.received_requests import ReceivedRequests
from gateway.api.registrations import Registrations
from gateway.api.replays import Replays
from gateway.api.reports import Reports, ReportWriter
from gateway.api.sources import Sources
from gateway.api.specifications import Contract
from gateway.api.statistics import Statistics
from gateway.api.valohai import ValohaiNotifications, ValohaiUrls
from gateway.api.webhook_secrets import WebhookSecrets
from gateway.dashboard.api_pages import ApiPages
from gateway.dashboard.app_pages import AppPages
from gateway.dashboard.channel_pages import ChannelPages
from gateway.dashboard.components import Components
from gateway.dashboard.connect_pages import ConnectPages
from gateway.dashboard.connection_pages import ConnectionPages
from gateway.dashboard.dead_letter_pages import DeadLetterPages
from gateway.dashboard.error_pages import ErrorPages
from gateway.dashboard.identity_pages import IdentityPages
from gateway.dashboard.list_pages import ListPages
from gateway.dashboard.overview import LetterCount, Overview
from gateway.dashboard.pages import Pages
from gateway.dashboard.record_pages import RecordPages
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.routes import PageRoute
from gateway.dashboard.sessions import Sessions
from gateway.dashboard.source_pages import SourcePages, of_rule
from gateway.dashboard.trigger_pages import TriggerPages, of_connection
from gateway.intake.connection_cache import ConnectionCache
from gateway.intake.group_commit import DeliveryWriter
from gateway.intake.refusal_log import RefusalLog
from gateway.intake.reruns import Reruns
from gateway.intake.uptime import Uptime
from gateway.intake.webhook import WebhookEndpoint, webhook_route
from gateway.publish.brokers import Brokers
from gateway.roles.parts import Parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Web:
    """The webhook endpoint of a process with the role `web`, its routes, and the pages among them."""

    webhook: WebhookEndpoint
    routes: Sequence[BaseRoute]
    pages: Pages


def build_web(
    parts: Parts,
    writer: DeliveryWriter,
    refusals: RefusalLog,
    uptime: Uptime,
    *,
    is_closing: Callable[[], bool],
    disk_trouble: Callable[[], Awaitable[str | None]],
) -> Web:
    """Build the webhook endpoint, the REST API and the dashboard."""
    settings = parts.settings
    cache = ConnectionCache(parts.database, parts.keyring)
    webhook = WebhookEndpoint(
        cache,
        writer,
        refusals,
        body_limit=settings.body_limit,
        reruns=Reruns(parts.database, notify=parts.requests.notify),
        trusted_proxies=settings.trusted_proxies,
        logs_deliveries=settings.log_deliveries,
        on_failure=uptime.failed,
    )
    token = AdminToken(parts.admin_token, trusted_proxies=settings.trusted_proxies)
    api = _build_api(parts, cache, is_closing=is_closing)
    operations = api.operations()
    contract = Contract(
        topology=parts.topology,
        mode=settings.amqp_content_mode,
        events=settings.amqp_events,
        operations=operations,
        base_url=settings.base_url,
    )
    keys = Idempotency(database=parts.database, keyring=parts.keyring)
    pages = _build_pages(parts, api, token, keys, disk_trouble=disk_trouble)
    return Web(
        webhook=webhook,
        routes=[
            # Routes are tried in turn, and no other paths are requested as often as the signed ones.
            *(
                each.route(token, base_url=settings.base_url, keys=keys)
                for each in sorted(operations, key=lambda each: not each.is_signed)
            ),
            # It is served ahead of the routing, which names its methods.
            webhook_route(webhook),
            *contract.routes(),
            *pages.routes(),
        ],
        pages=pages,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Api:
    """The endpoints of the REST API, by their subjects."""

    connections: Connections
    identities: Identities
    channels: NotificationChannels
    sources: Sources
    registrations: Registrations
    secrets: WebhookSecrets
    health: HealthOverview
    statistics: Statistics
    replays: Replays
    dry_run: DryRun
    deliveries: Deliveries
    received: ReceivedRequests
    executions: Executions
    dead_letters: DeadLetters
    reports: Reports
    valohai: ValohaiNotifications
    files: PackageFiles

    def operations(self) -> list[Operation]:
        """Return the operations of all endpoints."""
        return [
            *self.connections.operations(),
            *self.identities.operations(),
            *self.channels.operations(),
            *self.sources.operations(),
            *self.registrations.operations(),
            *self.secrets.operations(),
            *self.health.operations(),
            *self.statistics.operations(),
            *self.replays.operations(),
            *self.dry_run.operations(),
            *self.deliveries.operations(),
            *self.received.operations(),
            *self.executions.operations(),
            *self.dead_letters.operations(),
            *self.reports.operations(),
            *self.valohai.operations(),
            *self.files.operations(),
        ]


def _build_api(parts: Parts, cache: ConnectionCache, *, is_closing: Callable[[], bool]) -> _Api:
    settings, database = parts.settings, parts.database
    executions = Executions(
        database=database,
        storage=parts.storage,
        signer=parts.signer,
        status_urls=parts.status_urls,
        requests=parts.requests,
        reports=parts.reports,
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
        identities=Identities(
            database=database,
            keyring=parts.keyring,
            pushes=parts.pushes,
            allow_http=settings.fetch_allow_http,
            hosts=settings.fetch_hosts,
        ),
        channels=NotificationChannels(
            database=database,
            keyring=parts.keyring,
            pushes=parts.pushes,
            base_url=settings.base_url,
            allow_http=settings.fetch_allow_http,
        ),
        sources=Sources(
            database=database,
            keyring=parts.keyring,
            cache=cache,
            pushes=parts.pushes,
            base_url=settings.base_url,
            allow_http=settings.fetch_allow_http,
            hosts=settings.fetch_hosts,
        ),
        registrations=Registrations(database=database, pushes=parts.pushes),
        secrets=WebhookSecrets(database=database, cache=cache),
        health=HealthOverview(database=database),
        statistics=Statistics(database=database),
        replays=Replays(database=database, pushes=parts.pushes),
        dry_run=DryRun(
            database=database,
            mirrors=parts.mirrors,
            reader=parts.reader,
            max_request_bytes=settings.max_request_bytes,
        ),
        deliveries=Deliveries(database=database, pushes=parts.pushes, executions=executions),
        received=ReceivedRequests(database=database),
        executions=executions,
        dead_letters=DeadLetters(
            executions=executions, brokers=partial(Brokers.of, settings), topology=parts.topology
        ),
        reports=Reports(
            writer=ReportWriter(database, notify=parts.reports.notify),
            signed_tokens=parts.status_urls.signed_tokens,
        ),
        valohai=ValohaiNotifications(
            database=database,
            urls=ValohaiUrls(keyring=parts.keyring, base_url=settings.base_url),
            notify=parts.reports.notify,
        ),
        files=PackageFiles(database=database, storage=parts.storage, signed_tokens=parts.signed_tokens),
    )


def _build_pages(
    parts: Parts,
    api: _Api,
    token: AdminToken,
    keys: Idempotency,
    *,
    disk_trouble: Callable[[], Awaitable[str | None]],
) -> Pages:
    base_url = parts.settings.base_url
    renderer = Renderer(base_url, parts.keyring.session_key())
    return Pages(
        connections=api.connections,
        identities=api.identities,
        channels=api.channels,
        registrations=api.registrations,
        sources=api.sources,
        apps=AppPages(sources=api.sources, renderer=renderer),
        more=_more_pages(api, renderer),
        overview=Overview(
            components=Components(
                database=parts.database,
                storage=parts.storage,
                has_broker=parts.settings.amqp_url is not None,
                disk_trouble=disk_trouble,
            ),
            dead_letters=LetterCount(count=api.dead_letters.count_at_broker),
            statistics=api.statistics,
            executions=api.executions,
            renderer=renderer,
        ),
        apis=ApiPages(
            api.operations(),
            lambda each: keys.once(each.checked(base_url)),
            renderer=renderer,
            token=token.value,
        ),
        lists=ListPages(
            connections=api.connections,
            health=api.health,
            deliveries=api.deliveries,
            executions=api.executions,
            renderer=renderer,
        ),
        records=RecordPages(
            deliveries=api.deliveries,
            received=api.received,
            executions=api.executions,
            registrations=api.registrations,
            renderer=renderer,
        ),
        sessions=Sessions(parts.keyring.session_key(), token=parts.admin_token, base_url=base_url),
        renderer=renderer,
        errors=ErrorPages(renderer=renderer),
        token=token,
    )


def _more_pages(api: _Api, renderer: Renderer) -> list[PageRoute]:
    """Return the pages of dead letters, of connecting repositories, and of what belongs to connections."""
    connections, identities, registrations = api.connections, api.identities, api.registrations
    return [
        *DeadLetterPages(dead_letters=api.dead_letters, renderer=renderer).routes(),
        *ConnectPages(
            connections=connections, identities=identities, registrations=registrations, renderer=renderer
        ).routes(),
        *ConnectionPages(
            connections=connections,
            identities=identities,
            registrations=registrations,
            secrets=api.secrets,
            renderer=renderer,
        ).routes(),
        *TriggerPages(
            base="/connections/{id}", find=of_connection(connections, api.dry_run), renderer=renderer
        ).routes(),
        *IdentityPages(identities=identities, renderer=renderer).routes(),
        *ChannelPages(channels=api.channels, renderer=renderer).routes(),
        *SourcePages(
            sources=api.sources, identities=identities, secrets=api.secrets, renderer=renderer
        ).routes(),
        *TriggerPages(
            base="/sources/{id}/rules/{number}", find=of_rule(api.sources), renderer=renderer
        ).routes(),
    ]
