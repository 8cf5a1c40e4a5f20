"""Limits of HTTP connections: their number, their time, and what clients may send besides bodies.

uvicorn with httptools has no such limits: all headers, trailers and chunk extensions of a client are parsed
and kept. This module counts bytes before the parser gets them. Bodies have their own reader, see
`gateway.intake.body`.
"""

import asyncio
import json
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, cast

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.logs import Condition
from gateway.metrics import HTTP_CONNECTIONS, REFUSED

log = structlog.get_logger()

_MAX_HEADERS = 100
_MAX_HEADER_BYTES = 64 * 1024
_MAX_URL_BYTES = 8 * 1024
# Data is parsed in pieces of this size; bytes outside the body are counted before each piece.
_PIECE = 16 * 1024
# Requests that a client may send ahead of the answers; each costs about 3 KB.
_MAX_PIPELINED = 16
# The rest of a body after its request was answered: a client that still sends does not read the answer.
_MAX_DISCARDED = 64 * 1024 * 1024
_DISCARD_SECONDS = 5.0
# Files and sockets other than clients': the store, the broker, git, mirrors.
_OTHER_FILES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """The limits of the clients of a process. Times are in seconds.

    `keep_alive` is how long a connection may stay idle between two requests. `headers` is how long headers
    of a request may take, from its first byte or from the start of the connection. `body` is how long a whole
    request may take, for endpoints that do not read bodies. `stall` is how long a client may read nothing of
    its answer. `check` is the interval of the search for expired connections.
    """

    connections: int
    keep_alive: float = 75.0
    headers: float = 10.0
    body: float = 60.0
    stall: float = 60.0
    check: float = 1.0


class _State(Enum):
    IDLE = auto()
    HEADERS = auto()
    BODY = auto()


_IDLE, _HEADERS, _BODY = _State


class Clients:
    """The open connections of a process: closes expired connections, and makes room for new ones."""

    def __init__(self, limits: ClientLimits) -> None:
        """Start without connections."""
        self.limits = limits
        # Connections that wait for their client to send or to read, with their deadlines; the connection that
        # has been silent for longest comes first. One timer serves all: one timer for each connection would
        # cost more than the rest of this class.
        self._waiting: dict[LimitedHttp, float] = {}
        self._is_checking = False
        self._full = Condition(
            "all HTTP connections are in use; the longest silent connection is closed for a new one"
        )

    def wait_for(self, client: "LimitedHttp", deadline: float) -> None:
        """Close the connection at this time of the event loop, unless `forget` is called first."""
        self._waiting.pop(client, None)
        self._waiting[client] = deadline
        if not self._is_checking:
            self._is_checking = True
            client.loop.call_later(self.limits.check, self._check, client.loop)

    def forget(self, client: "LimitedHttp") -> None:
        """Remove the deadline of a connection that waits for us, or has ended."""
        self._waiting.pop(client, None)

    def make_room(self) -> bool:
        """Close the connection whose client has been silent for longest; return False if all are busy."""
        self._full.holds(connections=self.limits.connections)
        silent = next(iter(self._waiting), None)
        if silent is None:
            REFUSED.labels(503, "connections").inc()
            return False
        self._end(silent)
        return True

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for client in [client for client, deadline in self._waiting.items() if deadline <= now]:
            self._end(client)
        self._is_checking = bool(self._waiting)
        if self._is_checking:
            loop.call_later(self.limits.check, self._check, loop)

    def _end(self, client: "LimitedHttp") -> None:
        del self._waiting[client]
        # Not close(), which waits for a client that reads nothing.
        client.transport.abort()


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why the parsing of a request stopped."""

    status: int
    reason: str
    detail: str


class _RefusedError(Exception):
    """Stops the parsing of a request; the connection holds the reason.

    No connection keeps such an error, because an error references its frames, and through them the connection
    and all data that it has read.
    """


class _LastAnswer:
    """The transport for the answer after which the connection ends."""

    def __init__(self, client: "LimitedHttp") -> None:
        self._client = client

    def write(self, data: bytes) -> None:
        self._client.transport.write(data)

    def is_closing(self) -> bool:
        return self._client.transport.is_closing()

    def close(self) -> None:
        self._client.close_after_request()


class LimitedHttp(HttpToolsProtocol):
    """A connection of a client."""

    def __init__(self, *, clients: Clients, **given: Any) -> None:
        """Take uvicorn's arguments, and the set of connections that this connection belongs to."""
        super().__init__(**given)
        self._clients = clients
        self._limits = clients.limits
        self._state = _IDLE
        # None if a new stage of a request has begun that has no deadline yet.
        self._deadline: float | None = None
        # Bytes since the last byte of a body, or since the start of the request.
        self._overhead = 0
        self._discarded = 0
        self._refusal: _Refusal | None = None
        self._is_deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, if there is room."""
        super().connection_made(transport)
        HTTP_CONNECTIONS.set(len(self.connections))
        if len(self.connections) > self._limits.connections and not self._clients.make_room():
            self._is_deaf = True
            self._answer(503, "try again", "too many connections at once", b"retry-after: 5\r\n")
            transport.close()
        self._expect(self._limits.headers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._clients.forget(self)
        super().connection_lost(exc)
        HTTP_CONNECTIONS.set(len(self.connections))
        # uvicorn keeps this timer, and with it the connection, if the client has reset the connection.
        self._unset_keepalive_if_required()
        if self.cycle is not None:
            # Without `_LastAnswer`, which refers to the connection.
            self.cycle.transport = self.transport

    def data_received(self, data: bytes) -> None:
        """Parse the received data piece by piece, as long as it keeps within the limits."""
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserUpgrade:
            # No other protocol is supported: the request is answered, and the rest is not read.
            self._is_deaf = True
            self.cycle.keep_alive = False
            self._clients.forget(self)
        except (httptools.HttpParserError, _RefusedError) as error:
            self._refuse(self._refusal or _Refusal(400, "malformed", f"not a valid HTTP request: {error}"))
        else:
            if self._is_our_turn():
                self._clients.forget(self)
            elif self._deadline is None:
                self._expect(self._limits.headers if self._state is _HEADERS else self._limits.body)
            else:
                self._clients.wait_for(self, self._deadline)

    def _parse(self, data: bytes) -> None:
        if len(data) <= _PIECE:
            self._feed(data)
            return
        view = memoryview(data)
        for start in range(0, len(data), _PIECE):
            self._feed(view[start : start + _PIECE])

    def _feed(self, piece: bytes | memoryview) -> None:
        self._overhead += len(piece)
        if self._overhead > _MAX_HEADER_BYTES + _PIECE:
            if self._state is _HEADERS:
                self._check_url()
            raise self._refused(431, "headers", f"more than {_MAX_HEADER_BYTES} bytes besides the body")
        self.parser.feed_data(piece)

    def on_message_begin(self) -> None:
        """Wait for the headers of a request."""
        super().on_message_begin()
        self._state = _HEADERS
        self._overhead = self._discarded = 0
        self._deadline = None

    def _check_url(self) -> None:
        if len(self.url) > _MAX_URL_BYTES:
            raise self._refused(414, "request line", f"the URL has more than {_MAX_URL_BYTES} bytes")

    def _check_headers(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > _MAX_HEADERS or size > _MAX_HEADER_BYTES:
            limit = f"more than {_MAX_HEADERS} headers, or {_MAX_HEADER_BYTES} bytes of them"
            raise self._refused(431, "headers", limit)

    def on_headers_complete(self) -> None:
        """Start the answer. Headers from now on are trailers, which are not used."""
        self._check_url()
        # Most requests have so few bytes that their headers need not be counted.
        if len(self.headers) > _MAX_HEADERS or self._overhead > _MAX_HEADER_BYTES - 2 * _PIECE:
            self._check_headers(self.headers)
        hosts = [name for name, _ in self.headers].count(b"host")
        # https://www.rfc-editor.org/rfc/rfc9112#section-3.2
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise self._refused(400, "host", "a request must have exactly one Host header")
        if self.parser.should_upgrade() and any(map(_announces_body, self.headers)):
            # The parser treats what follows as the other protocol, and the request as without a body.
            raise self._refused(
                400, "upgrade", "a request for another protocol must not have a body: send HTTP/1.1"
            )
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise self._refused(400, "pipelined", "too many requests sent ahead of their answers")
        super().on_headers_complete()
        if not self.cycle.keep_alive:
            self.cycle.transport = cast("asyncio.Transport", _LastAnswer(self))
        self.headers = []
        self._state = _BODY
        self._deadline = None

    def on_body(self, body: bytes) -> None:
        """Take a part of the body. As many bytes may come between its parts as the body has."""
        self._overhead = max(0, self._overhead - 2 * len(body))
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > _MAX_DISCARDED:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Record that the request is complete."""
        if self.headers:
            self._check_headers([*self.cycle.scope["headers"], *self.headers])
        super().on_message_complete()
        self._state = _IDLE
        if not self.cycle.response_complete:
            return
        if self.cycle.keep_alive:
            self._expect(self._limits.keep_alive)
        else:
            self.transport.close()

    def close_after_request(self) -> None:
        """Close the connection once the request is complete: unread data would discard the answer."""
        if self._state is _IDLE:
            self.transport.close()
        else:
            self.transport.write_eof()

    def on_response_complete(self) -> None:
        """Wait for the rest of this request, or for the next request."""
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect(self._limits.stall)
        elif self._state is not _IDLE:
            self._expect(_DISCARD_SECONDS)
        elif not has_next:
            self._expect(self._limits.keep_alive)

    def pause_writing(self) -> None:
        """Wait for the client to read."""
        super().pause_writing()
        self._expect(self._limits.stall)

    def resume_writing(self) -> None:
        """Continue, because the client reads."""
        super().resume_writing()
        if self._is_our_turn():
            self._clients.forget(self)

    def _is_our_turn(self) -> bool:
        """Return whether the client has sent and read everything that is expected of it."""
        is_answering = self._answering() is not None
        return is_answering and self._state is _IDLE and not self.flow.write_paused

    def _answering(self) -> RequestResponseCycle | None:
        """Return the newest request, if its answer is incomplete."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle if cycle is not None and not cycle.response_complete else None

    def _expect(self, seconds: float) -> None:
        """Wait for the client for this time."""
        self._deadline = self.loop.time() + seconds
        self._clients.wait_for(self, self._deadline)

    def _refused(self, status: int, reason: str, detail: str) -> _RefusedError:
        """Record the refusal, and return the error to raise; the parser replaces it by its own error."""
        self._refusal = _Refusal(status, reason, detail)
        return _RefusedError()

    def _refuse(self, refused: _Refusal) -> None:
        """Answer, stop reading, and close; if another answer has begun, only close."""
        REFUSED.labels(refused.status, refused.reason).inc()
        self._is_deaf = True
        # There may be thousands of headers, and the connection stays open for some seconds.
        self.headers = []
        running = self._answering()
        is_too_late = self.pipeline or self.transport.is_closing()
        if is_too_late or (running is not None and running.response_started):
            self.transport.abort()
            return
        if running is not None:
            # Its endpoint waits for a body that will never arrive.
            running.disconnected = True
            running.message_event.set()
        self._answer(refused.status, "bad request", refused.detail)
        # The connection is closed when the client closes it, or some seconds later: the client may still be
        # sending, and closing a socket with unread data would discard the answer.
        self.transport.write_eof()
        self._expect(_DISCARD_SECONDS)

    def _answer(self, status: int, error: str, detail: str, more: bytes = b"") -> None:
        body = json.dumps({"error": error, "detail": detail}).encode()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)
        self.transport.write(b"".join((STATUS_LINE[status], head, more, b"\r\n", body)))


def _announces_body(header: tuple[bytes, bytes]) -> bool:
    name, value = header
    return name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0") != b"")


def limited(limits: ClientLimits) -> type[asyncio.Protocol]:
    """Return the protocol class for uvicorn; these limits apply to all its connections."""
    clients = Clients(limits)

    def connect(**given: Any) -> LimitedHttp:
        return LimitedHttp(clients=clients, **given)

    # uvicorn only calls the class.
    return cast("type[asyncio.Protocol]", connect)


def allow_open_files(connections: int) -> int:
    """Raise the limit of open files for this many connections; return how many connections it allows.

    Many systems start a process with a limit of 1,024, and allow it far more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(soft - _OTHER_FILES, soft // 2))
