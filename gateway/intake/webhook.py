"""The webhook endpoint: `POST /hooks/{connection}`.

A bare ASGI application, because this is the hot path. It verifies the sender, normalizes the delivery, stores
it durably, and only then answers. It depends on neither git nor RabbitMQ.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from http import HTTPStatus

import structlog
from pydantic_core import to_json
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import NotFound, SettingError, StoreUnavailable
from gateway.intake.body import BodyReader, Disconnected, TooLarge, TooMuch, TooSlow
from gateway.intake.client_address import client_address
from gateway.intake.connection_cache import CachedConnection, ConnectionCache
from gateway.intake.connection_cache import Route as RepositoryRoute
from gateway.intake.group_commit import DeliveryWriter
from gateway.intake.normalize import (
    Received,
    delivery_of_source,
    delivery_to,
    read_request,
    routed_id,
)
from gateway.intake.refusal_log import RefusalLog
from gateway.intake.request_span import RequestSpan
from gateway.intake.reruns import Reruns
from gateway.metrics import DELIVERIES, PROVIDER_LAG, REFUSED
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.refusals import Refusal
from gateway.text.escape import printable
from gateway.threads import WEBHOOKS
from gateway.tracing import spans
from providers import PROVIDERS
from providers.errors import Unverified

log = structlog.get_logger()

# Larger bodies would block the event loop for too long: a thread verifies and parses them.
_MAX_INLINE_BYTES = 256 * 1024
_MAX_IN_FLIGHT = 2048
# How long all store operations of a request may take together: providers give up after 10 seconds.
_STORE_SECONDS = 4.5
_MAX_LOGGED = 100
_MAX_REFS_LOGGED = 10
_MAX_REASON = 300
_RETRY_AFTER = (b"retry-after", b"5")
_CLOSE = (b"connection", b"close")
_JSON = (b"content-type", b"application/json")
_NO_ROUTE = RepositoryRoute(known=None, connection=None)

# A request for no connection may be any provider's, and any text may stand in its URL.
_ANY_ID = tuple(dict.fromkeys(name for provider in PROVIDERS.values() for name in provider.ID_HEADERS))
_ANY_EVENT = tuple(dict.fromkeys(name for provider in PROVIDERS.values() for name in provider.EVENT_HEADERS))
_CONNECTION_ID = re.compile(r"[0-9a-f]{24}")

Header = tuple[bytes, bytes]


class _Answer(Exception):
    """An answer that ends the request early; `reason` is its label in the metrics."""

    def __init__(
        self, status: int, error: str, detail: str, *headers: Header, reason: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason or error
        self.body = {"error": error, "detail": detail}
        self.headers = headers


class WebhookEndpoint:
    """Handles the providers' requests."""

    def __init__(
        self,
        connections: ConnectionCache,
        writer: DeliveryWriter,
        refusals: RefusalLog,
        *,
        body_limit: int,
        reruns: Reruns | None = None,
        trusted_proxies: int = 0,
        logs_deliveries: bool = False,
        on_failure: Callable[[str], None] = lambda _: None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        """Trust this many proxies in front of the gateway; `clock` returns aware UTC times.

        `on_failure` is called with the connection of each request that is answered with 503;
        `logs_deliveries` says whether each accepted delivery is logged.
        """
        self._connections = connections
        self._writer = writer
        self._refusals = refusals
        self._reruns = reruns
        self._bodies = BodyReader(limit=body_limit)
        self._trusted_proxies = trusted_proxies
        self._logs_deliveries = logs_deliveries
        self._on_failure = on_failure
        self._clock = clock or (lambda: datetime.now(UTC))
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Every answer is JSON."""
        self._in_flight += 1
        status: int
        answer: Mapping[str, str | None]
        headers: tuple[Header, ...] = ()
        span = RequestSpan() if spans.is_on() else None
        try:
            status, answer = await self._handle(scope, receive, span)
        except _Answer as early:
            status, answer, headers = early.status, early.body, early.headers
            REFUSED.labels(status, early.reason).inc()
        except Disconnected:
            return
        except Exception:
            # A bug here must not make the provider drop the event: with 503 it may retry.
            log.exception("the webhook endpoint failed", connection=scope["path_params"].get("connection"))
            failure = _unavailable("internal error", "the delivery could not be accepted; see the log")
            status, answer, headers = failure.status, failure.body, failure.headers
            REFUSED.labels(status, failure.reason).inc()
        finally:
            self._in_flight -= 1
        if span is not None:
            span.end(method=scope["method"], status=status)
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            self._on_failure(scope["path_params"]["connection"])
        body = to_json(answer)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [_JSON, (b"content-length", str(len(body)).encode()), *headers],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _handle(
        self, scope: Scope, receive: Receive, span: RequestSpan | None
    ) -> tuple[int, Mapping[str, str | None]]:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        connection, headers = await self._admit(scope)
        seconds = _STORE_SECONDS - (loop.time() - began_at)
        body = await self._body(connection, scope, headers, receive)
        now = self._clock()
        client = self._client(scope, headers)
        try:
            if len(body) > _MAX_INLINE_BYTES:
                received = await WEBHOOKS.run(read_request, connection, headers, body, now, client)
            else:
                received = read_request(connection, headers, body, now, client)
            if received.secret is None or received.event.kind == "echo":
                # What has no secret is unverified: only Bitbucket Data Center's unsigned ping gets here.
                return received.status, {
                    "delivery": None,
                    "verdict": "ignored",
                    "reason": received.event.note,
                }
            if connection.is_source:
                delivery = await self._routed(connection, received, seconds=seconds)
            else:
                delivery = delivery_to(connection, received)
            if delivery.rerun is not None and self._reruns is not None:
                delivery = await self._reruns.carry_out(delivery, delivery.rerun)
            if span is not None:
                span.belongs_to(delivery)
            receipt = await self._writer.accept(delivery, seconds=seconds)
        except Unverified as error:
            refusal = _Answer(401, "not verified", str(error))
            raise self._recorded(refusal, connection, scope, headers) from None
        except StoreUnavailable as error:
            raise _unavailable("store", f"the delivery cannot be stored now: {error}") from error
        self._report(connection.provider_name, received, delivery, receipt, span)
        if delivery.teaches is not None:
            self._connections.forget(connection.id)
        if delivery.seen is not None:
            self._connections.forget_route(connection, delivery.seen.repository)
        return received.status, answer_to(
            received.status, delivery=receipt.delivery, verdict=receipt.verdict, reason=receipt.reason
        )

    def _report(
        self,
        provider: str,
        received: Received,
        delivery: NewDelivery,
        receipt: Receipt,
        span: RequestSpan | None,
    ) -> None:
        """Count and trace a delivery that was stored, and log it if that is switched on."""
        DELIVERIES.labels(provider, receipt.verdict).inc()
        pushed_at = received.event.pushed_at
        if pushed_at is not None and receipt.verdict == "accepted":
            PROVIDER_LAG.labels(provider).observe(max(0.0, (received.at - pushed_at).total_seconds()))
        if span is not None:
            span.stored(delivery, receipt, provider=provider, pushed_at=pushed_at)
        if self._logs_deliveries and receipt.verdict == "accepted":
            log.info(
                "delivery accepted",
                delivery=receipt.delivery,
                connection=delivery.connection,
                provider=provider,
                event_name=delivery.event,
                refs=[update.ref for update in delivery.updates[:_MAX_REFS_LOGGED]],
            )

    async def _routed(self, source: CachedConnection, received: Received, *, seconds: float) -> NewDelivery:
        """Return the delivery to record for a request to a source. Raises `StoreUnavailable`."""
        repository, route = routed_id(received.event), _NO_ROUTE
        if repository is not None:
            route = await self._connections.route(source, repository, seconds=seconds)
        return delivery_of_source(source, received, route)

    async def _admit(self, scope: Scope) -> tuple[CachedConnection, dict[str, str]]:
        """Return the connection and the headers if the body should be read. Raises `_Answer`."""
        if scope["method"] != "POST":
            raise _Answer(405, "method not allowed", "send webhooks with POST", (b"allow", b"OPTIONS, POST"))
        if self._in_flight > _MAX_IN_FLIGHT:
            raise _unavailable("overload", "too many requests at once")
        connection = await self._find(scope)
        headers = _headers(scope)
        if connection.networks:
            self._check_source(connection, scope, headers)
        if headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
            refusal = _Answer(415, "unsupported content encoding", "the body is compressed: send it as it is")
            raise self._recorded(refusal, connection, scope, headers)
        return connection, headers

    def _check_source(self, connection: CachedConnection, scope: Scope, headers: Mapping[str, str]) -> None:
        address = client_address(scope, headers, trusted_proxies=self._trusted_proxies)
        if address is None or not any(address in network for network in connection.networks):
            reason = f"the address {address or 'of the sender'} is not in this connection's networks"
            refusal = _Answer(401, "not verified", reason, reason="network")
            raise self._recorded(refusal, connection, scope, headers)

    def _client(self, scope: Scope, headers: Mapping[str, str]) -> str | None:
        address = client_address(scope, headers, trusted_proxies=self._trusted_proxies)
        return None if address is None else str(address)

    def _recorded(
        self,
        refusal: _Answer,
        connection: CachedConnection | None,
        scope: Scope,
        headers: Mapping[str, str],
    ) -> _Answer:
        """Record a refusal, with the client's address and the unverified id of the delivery; return it."""
        client = self._client(scope, headers)
        provider = None if connection is None else connection.provider
        delivery = _first(headers, _ANY_ID if provider is None else provider.ID_HEADERS)
        event = _first(headers, _ANY_EVENT if provider is None else provider.EVENT_HEADERS)
        named = scope["path_params"]["connection"] if connection is None else connection.id
        if refusal.status == HTTPStatus.UNAUTHORIZED:
            reason = refusal.body["detail"]
            log.warning(
                "delivery refused", connection=named, reason=reason, client=client, claimed_delivery=delivery
            )
        now = self._clock()
        self._refusals.add(
            Refusal(
                connection=named if connection is not None or _CONNECTION_ID.fullmatch(named) else None,
                client=client,
                status=refusal.status,
                cause=refusal.reason,
                reason=refusal.body["detail"][:_MAX_REASON],
                event=event or "",
                provider_delivery_id=delivery,
                first_at=now,
                last_at=now,
            ),
            is_of_connection=connection is not None,
        )
        return refusal

    async def _find(self, scope: Scope) -> CachedConnection:
        connection_id = scope["path_params"]["connection"]
        try:
            return await self._connections.find(connection_id)
        except NotFound:
            refusal = _Answer(404, "no such connection", "no connection has this webhook URL")
            raise self._recorded(refusal, None, scope, _headers(scope)) from None
        except StoreUnavailable as error:
            raise _unavailable("store", f"the connection cannot be looked up now: {error}") from error
        except SettingError as error:
            log.error("a connection cannot be used", connection=connection_id, reason=str(error))
            raise _unavailable(
                "secret key", "this connection's secret cannot be read; see the log"
            ) from error

    async def _body(
        self, connection: CachedConnection, scope: Scope, headers: Mapping[str, str], receive: Receive
    ) -> bytes:
        try:
            return await self._bodies.read(scope, receive)
        except TooLarge as error:
            refusal = _Answer(413, "body too large", str(error))
            raise self._recorded(refusal, connection, scope, headers) from None
        except TooSlow as error:
            raise _unavailable("slow", str(error)) from None
        except TooMuch as error:
            raise _unavailable("overload", str(error)) from None


def answer_to(status: int, *, delivery: str, verdict: str, reason: str | None) -> dict[str, str | None]:
    """Return the body of the answer to a request whose delivery was stored."""
    answer = {"delivery": delivery, "verdict": verdict, "reason": reason}
    if status >= HTTPStatus.BAD_REQUEST:
        return {"error": "unreadable body", "detail": reason, **answer}
    return answer


def webhook_route(endpoint: WebhookEndpoint) -> Route:
    """Return the route of webhooks, which `WebhooksFirst` serves ahead of the routing."""
    return Route("/hooks/{connection}", endpoint, methods=["POST"])


class WebhooksFirst:
    """An ASGI application that serves `/hooks/{connection}` itself, and passes everything else on.

    The endpoint answers its own errors. The middleware and the routes of Starlette would cost it as much as
    the verification of a signature.
    """

    def __init__(self, endpoint: WebhookEndpoint, others: ASGIApp) -> None:
        """Pass all requests but webhooks, and the events of the lifespan, to `others`."""
        self._endpoint = endpoint
        self._route = webhook_route(endpoint)
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] == "http":
            folder, _, connection = scope["path"].rpartition("/")
            # The routing of the others answers OPTIONS.
            if folder == "/hooks" and connection and scope["method"] != "OPTIONS":
                scope["path_params"], scope["route"] = {"connection": connection}, self._route
                await self._endpoint(scope, receive, send)
                return
        await self._others(scope, receive, send)


def _unavailable(reason: str, detail: str) -> _Answer:
    # Never 429 or 500: after these, Azure DevOps drops events for good.
    return _Answer(503, "try again", detail, _RETRY_AFTER, _CLOSE, reason=reason)


def _first(headers: Mapping[str, str], names: Iterable[str]) -> str | None:
    """Return the beginning of the first of these headers that has a value, as text for people."""
    return printable(next((headers[name] for name in names if headers.get(name)), "")[:_MAX_LOGGED]) or None


def _headers(scope: Scope) -> dict[str, str]:
    given: list[Header] = scope["headers"]
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in given}
    return headers if len(headers) == len(given) else _joined(given)


def _joined(given: Iterable[Header]) -> dict[str, str]:
    """Join repeated headers, as RFC 9110, 5.2 says: a list is never a well-formed signature."""
    values: dict[str, list[str]] = {}
    for name, value in given:
        values.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return {name: ", ".join(found) for name, found in values.items()}
