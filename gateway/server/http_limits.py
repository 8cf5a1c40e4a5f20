"""HTTP connections under limits: what clients may send besides bodies, how long it takes, how many there are.

uvicorn with httptools has no such limits of its own: whatever a client sends as headers, trailers or chunk
extensions is parsed and held. Bytes are counted here before the parser gets them. Bodies have their own
reader, see `gateway.intake.body`.
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
from gateway.metrics import REFUSED

log = structlog.get_logger()

_MAX_HEADERS = 100
_MAX_HEADER_BYTES = 64 * 1024
_MAX_URL_BYTES = 8 * 1024
# Data is parsed in pieces of this size, and what is not body is counted before each.
_PIECE = 16 * 1024
# Requests that a client has sent ahead of the answers; each costs about 3 KB.
_MAX_PIPELINED = 16
# The rest of a body whose request was answered already: a client that is still sending reads no answer.
_MAX_DISCARDED = 64 * 1024 * 1024
_DISCARD_SECONDS = 5.0
# Files and sockets of everything but clients: the store, the broker, git, mirrors.
_OTHER_FILES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientLimits:
    """What clients may use of a process. Times are in seconds.

    `keep_alive` is how long a connection may stay idle between two requests, `headers` how long the headers
    of a request may take from its first byte, or from the connection's beginning; `body` the same for a whole
    request, for endpoints that do not read bodies; `stall` how long a client may read nothing of its answer.
    `check` is the interval of looking for connections whose time is over.
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
    """The open connections of a process: ends those whose time is over, and makes room for new ones."""

    def __init__(self, limits: ClientLimits) -> None:
        """Begin without connections."""
        self.limits = limits
        # Connections whose client has to send or to read next, and until when it may; the one that has been
        # silent for longest comes first. One timer serves all: a timer each costs more than the rest of this.
        self._waiting: dict[LimitedHttp, float] = {}
        self._is_checking = False
        self._full = Condition(
            "all HTTP connections are in use; the most silent one makes room for a new one"
        )

    def wait_for(self, client: "LimitedHttp", deadline: float) -> None:
        """End the connection at this time of the event loop, unless `has_sent` comes first."""
        self._waiting.pop(client, None)
        self._waiting[client] = deadline
        if not self._is_checking:
            self._is_checking = True
            client.loop.call_later(self.limits.check, self._check, client.loop)

    def forget(self, client: "LimitedHttp") -> None:
        """Let the connection take its time: it waits for us, or has ended."""
        self._waiting.pop(client, None)

    def make_room(self) -> bool:
        """End the connection whose client has been silent for longest; return False where all are busy."""
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
        # Not close(): that waits for a client that reads nothing.
        client.transport.abort()


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a request is not parsed any further."""

    status: int
    reason: str
    detail: str


class _RefusedError(Exception):
    """A request that is not parsed any further; the connection knows why.

    No connection keeps one: an error holds the frames that it came through, and with them the connection
    and all that it has read.
    """


class LimitedHttp(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *, clients: Clients, **given: Any) -> None:
        """Take what uvicorn gives, and the connections that this one is one of."""
        super().__init__(**given)
        self._clients = clients
        self._limits = clients.limits
        self._state = _IDLE
        # None where a new stage of a request has begun that has no deadline yet.
        self._deadline: float | None = None
        # Bytes since the last one of a body, or since the request's first.
        self._overhead = 0
        self._discarded = 0
        self._refusal: _Refusal | None = None
        self._is_deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, if there is room."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections and not self._clients.make_room():
            self._is_deaf = True
            self._answer(503, "try again", "too many connections at once", b"retry-after: 5\r\n")
            transport.close()
        self._expect(self._limits.headers)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._clients.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, piece by piece, as long as it keeps to the limits."""
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserUpgrade:
            # No other protocol is spoken here: the request is answered, and what follows is not read.
            self._is_deaf = True
            self.cycle.keep_alive = False
            self._clients.forget(self)
        except (httptools.HttpParserError, _RefusedError) as error:
            self._refuse(self._refusal or _Refusal(400, "malformed", f"this is not an HTTP request: {error}"))
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
        """Expect the headers of a request."""
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
        """Have the request answered. What comes as headers from now on are trailers, which nobody reads."""
        self._check_url()
        # Of most requests so few bytes came that those of the headers need not be counted.
        if len(self.headers) > _MAX_HEADERS or self._overhead > _MAX_HEADER_BYTES - 2 * _PIECE:
            self._check_headers(self.headers)
        hosts = [name for name, _ in self.headers].count(b"host")
        # https://www.rfc-editor.org/rfc/rfc9112#section-3.2
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise self._refused(400, "host", "a request has exactly one Host header")
        if self.parser.should_upgrade() and any(map(_announces_body, self.headers)):
            # The parser takes whatever follows for the other protocol, and the request for one without body.
            raise self._refused(400, "upgrade", "a request for another protocol has no body: send HTTP/1.1")
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise self._refused(400, "pipelined", "too many requests sent ahead of their answers")
        super().on_headers_complete()
        self.headers = []
        self._state = _BODY
        self._deadline = None

    def on_body(self, body: bytes) -> None:
        """Take a part of the body. Of what comes between its parts as much is fine as there is body."""
        self._overhead = max(0, self._overhead - 2 * len(body))
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > _MAX_DISCARDED:
                self.transport.abort()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the whole request is here."""
        if self.headers:
            self._check_headers([*self.cycle.scope["headers"], *self.headers])
        super().on_message_complete()
        self._state = _IDLE
        if self.cycle.response_complete:
            self._expect(self._limits.keep_alive)

    def on_response_complete(self) -> None:
        """Expect the next request, or first the rest of this one."""
        has_next = bool(self.pipeline)
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect(self._limits.stall)
        elif self._state is not _IDLE:
            self._expect(_DISCARD_SECONDS)
        elif not has_next:
            self._expect(self._limits.keep_alive)

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self._expect(self._limits.stall)

    def resume_writing(self) -> None:
        """Go on: the client reads."""
        super().resume_writing()
        if self._is_our_turn():
            self._clients.forget(self)

    def _is_our_turn(self) -> bool:
        """Return whether the client has sent and read all that it should have."""
        is_answering = self._answering() is not None
        return is_answering and self._state is _IDLE and not self.flow.write_paused

    def _answering(self) -> RequestResponseCycle | None:
        """Return the newest request, if it has no whole answer yet."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle if cycle is not None and not cycle.response_complete else None

    def _expect(self, seconds: float) -> None:
        """Wait for the client until then."""
        self._deadline = self.loop.time() + seconds
        self._clients.wait_for(self, self._deadline)

    def _refused(self, status: int, reason: str, detail: str) -> _RefusedError:
        """Note the refusal, and return what to raise; the parser raises an error of its own in its place."""
        self._refusal = _Refusal(status, reason, detail)
        return _RefusedError()

    def _refuse(self, refused: _Refusal) -> None:
        """Answer, read nothing more, and close; where another answer is under way, only close."""
        REFUSED.labels(refused.status, refused.reason).inc()
        self._is_deaf = True
        # Thousands of them may have come, and the connection stays for some seconds.
        self.headers = []
        running = self._answering()
        is_too_late = self.pipeline or self.transport.is_closing()
        if is_too_late or (running is not None and running.response_started):
            self.transport.abort()
            return
        if running is not None:
            # Its endpoint waits for a body that will not come.
            running.disconnected = True
            running.message_event.set()
        self._answer(refused.status, "bad request", refused.detail)
        # Closed only when the client closes, or some seconds later: it may be sending still, and a socket
        # that is closed on unread data takes the answer back.
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
    """Return the protocol for uvicorn, all connections of which are under these limits."""
    clients = Clients(limits)

    def connect(**given: Any) -> LimitedHttp:
        return LimitedHttp(clients=clients, **given)

    # uvicorn only calls it.
    return cast("type[asyncio.Protocol]", connect)


def allow_open_files(connections: int) -> int:
    """Let the process open as many files as so many connections need; return for how many that suffices.

    Many systems let a process begin with 1,024 and allow it far more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(soft - _OTHER_FILES, soft // 2))
