"""The webhook door: `POST /hooks/{connection}`.

A bare ASGI application, because this is the hot path. It proves the sender, says what the delivery means,
has it recorded durably, and only then answers. It knows nothing of git or RabbitMQ.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import structlog
from pydantic_core import to_json
from starlette.types import Receive, Scope, Send

from gateway.errors import NotFound, SettingError, StoreUnavailable
from gateway.intake.body import BodyReader, Disconnected, TooLarge, TooMuch, TooSlow
from gateway.intake.client_address import client_address
from gateway.intake.connection_cache import CachedConnection, ConnectionCache
from gateway.intake.group_commit import DeliveryWriter
from gateway.intake.normalize import receive_delivery
from gateway.metrics import DELIVERIES, REFUSED
from gateway.threads import WEBHOOKS
from providers.errors import Unverified

log = structlog.get_logger()

# Larger bodies keep the event loop busy for too long: verified and parsed in a thread.
_LARGE = 256 * 1024
_MAX_IN_FLIGHT = 2048
# What all looks into the store and the writing of a delivery may take: providers give up after 10 seconds.
_STORE_SECONDS = 4.5
_MAX_LOGGED = 100
_RETRY_AFTER = (b"retry-after", b"5")
_CLOSE = (b"connection", b"close")
_JSON = (b"content-type", b"application/json")

Header = tuple[bytes, bytes]


class _Answer(Exception):
    """An answer that ends the request early; `reason` is what the metrics call it."""

    def __init__(
        self, status: int, error: str, detail: str, *headers: Header, reason: str | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason or error
        self.body = {"error": error, "detail": detail}
        self.headers = headers


class WebhookEndpoint:
    """Takes the providers' requests."""

    def __init__(
        self,
        book: ConnectionCache,
        accepter: DeliveryWriter,
        *,
        body_limit: int,
        trusted_proxies: int = 0,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        """Wait for requests that came by so many proxies of ours; `clock` gives aware UTC times."""
        self._book = book
        self._accepter = accepter
        self._bodies = BodyReader(limit=body_limit)
        self._trusted_proxies = trusted_proxies
        self._clock = clock or (lambda: datetime.now(UTC))
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Every answer is JSON."""
        self._in_flight += 1
        status: int
        answer: Mapping[str, str | None]
        headers: tuple[Header, ...]
        try:
            status, answer, headers = await self._handle(scope, receive)
        except _Answer as early:
            status, answer, headers = early.status, early.body, early.headers
            REFUSED.labels(status, early.reason).inc()
        except Disconnected:
            return
        except Exception:
            # A bug of ours must not make the provider drop the event: it may try again.
            log.exception("the door failed", connection=scope["path_params"].get("connection"))
            failure = _unavailable("internal error", "the delivery could not be taken; the log says why")
            status, answer, headers = failure.status, failure.body, failure.headers
            REFUSED.labels(status, failure.reason).inc()
        finally:
            self._in_flight -= 1
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
        self, scope: Scope, receive: Receive
    ) -> tuple[int, Mapping[str, str | None], tuple[Header, ...]]:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        known, headers = await self._admit(scope)
        seconds = _STORE_SECONDS - (loop.time() - began_at)
        body = await self._body(scope, receive)
        now = self._clock()
        try:
            if len(body) > _LARGE:
                arrival, status = await WEBHOOKS.run(receive_delivery, known, headers, body, now)
            else:
                arrival, status = receive_delivery(known, headers, body, now)
            if arrival.secret is None:
                # Nobody has proven anything, so nothing is kept: Bitbucket Data Center's ping.
                return status, {"delivery": None, "verdict": "ignored", "reason": arrival.reason}, ()
            receipt = await self._accepter.accept(arrival, seconds=seconds)
        except Unverified as error:
            self._log_refusal(known, scope, headers, reason=str(error))
            raise _Answer(401, "not verified", str(error)) from None
        except StoreUnavailable as error:
            raise _unavailable("store", f"the delivery cannot be stored now: {error}") from error
        DELIVERIES.labels(known.provider_name, receipt.verdict).inc()
        if arrival.teaches is not None:
            self._book.forget(known.id)
        answer = {"delivery": receipt.delivery, "verdict": receipt.verdict, "reason": receipt.reason}
        if status >= 400:  # noqa: PLR2004 - the client error statuses
            answer = {"error": "unreadable body", "detail": receipt.reason, **answer}
        return status, answer, ()

    async def _admit(self, scope: Scope) -> tuple[CachedConnection, dict[str, str]]:
        """Return the connection and the headers of a request whose body is worth reading."""
        if scope["method"] != "POST":
            raise _Answer(405, "method not allowed", "webhooks are sent by POST", (b"allow", b"POST"))
        if self._in_flight > _MAX_IN_FLIGHT:
            raise _unavailable("overload", "too many requests at once")
        known = await self._find(scope["path_params"]["connection"])
        headers = _headers(scope)
        if known.networks:
            self._check_source(known, scope, headers)
        if headers.get("content-encoding", "").strip().lower() not in {"", "identity"}:
            raise _Answer(415, "unsupported content encoding", "send the body as it is, uncompressed")
        return known, headers

    def _check_source(self, known: CachedConnection, scope: Scope, headers: Mapping[str, str]) -> None:
        address = client_address(scope, headers, trusted_proxies=self._trusted_proxies)
        if address is None or not any(address in network for network in known.networks):
            reason = f"the address {address or 'of the sender'} is not in this connection's networks"
            self._log_refusal(known, scope, headers, reason=reason)
            raise _Answer(401, "not verified", reason, reason="network")

    def _log_refusal(
        self, known: CachedConnection, scope: Scope, headers: Mapping[str, str], *, reason: str
    ) -> None:
        """Log what was not verified, with what somebody who looks for it knows of it; nothing is proven."""
        address = client_address(scope, headers, trusted_proxies=self._trusted_proxies)
        ids = (headers[name] for name in known.provider.ID_HEADERS if headers.get(name))
        log.warning(
            "delivery refused",
            connection=known.id,
            reason=reason,
            client=None if address is None else str(address),
            delivery=next(ids, "")[:_MAX_LOGGED] or None,
        )

    async def _find(self, connection_id: str) -> CachedConnection:
        try:
            return await self._book.find(connection_id)
        except NotFound as error:
            raise _Answer(404, "no such connection", str(error)) from None
        except StoreUnavailable as error:
            raise _unavailable("store", f"the connection cannot be looked up now: {error}") from error
        except SettingError as error:
            log.error("a connection cannot be used", connection=connection_id, reason=str(error))
            raise _unavailable(
                "secret key", "this connection's secret cannot be read; the log says why"
            ) from error

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        try:
            return await self._bodies.read(scope, receive)
        except TooLarge as error:
            raise _Answer(413, "body too large", str(error)) from None
        except TooSlow as error:
            raise _unavailable("slow", str(error)) from None
        except TooMuch as error:
            raise _unavailable("overload", str(error)) from None


def _unavailable(reason: str, detail: str) -> _Answer:
    # Never 429 or 500: Azure DevOps takes those as a reason to drop events for good.
    return _Answer(503, "try again", detail, _RETRY_AFTER, _CLOSE, reason=reason)


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name in headers:
            repeated.setdefault(name, [headers[name]]).append(value)
        else:
            headers[name] = value
    # RFC 9110, 5.2: a header that was sent twice is a list; for a signature that is never well formed.
    return headers | {name: ", ".join(values) for name, values in repeated.items()}
