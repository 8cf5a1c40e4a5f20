"""The limits of the HTTP server, over sockets in this event loop: the exact value of each."""

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import structlog
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.metrics import REGISTRY
from gateway.server.http_limits import ClientLimits, allow_open_files, limited

App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
# Nothing here takes this long unless something is broken.
PATIENCE = 20.0
SOON = 0.05
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer at once, and read no body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def count(_scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer with its size."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    body = b"%08d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": body})


class Client:
    """A client of the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Wrap a connection."""
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send as much as the server reads."""
        with suppress(ConnectionError):
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()

    async def status(self) -> int | None:
        """Return the status of the next answer; None if the connection ends without one."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        self.headers, self.body = head, await self._reader.readexactly(int(length.partition(b":")[2]))
        return int(head.split(b" ", 2)[1])

    async def ask(self, *pieces: bytes) -> int | None:
        """Send, and return the status of the answer."""
        await self.send(*pieces)
        return await self.status()

    async def is_hung_up_on(self) -> bool:
        """Wait for the end of the connection, and return whether nothing else arrived."""
        with suppress(ConnectionError):
            return not await self._reader.read(1)
        return True

    async def has_ended(self) -> None:
        """Read until the connection has ended."""
        with suppress(ConnectionError):
            await self._reader.read()

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


class Server:
    """The server, and the clients that the test has opened."""

    def __init__(self, port: int) -> None:
        """Begin without clients."""
        self._port = port
        self._clients: list[Client] = []

    async def client(self) -> Client:
        """Connect."""
        self._clients.append(Client(*await asyncio.open_connection("127.0.0.1", self._port)))
        return self._clients[-1]

    async def ask(self, *pieces: bytes) -> int | None:
        """Return the status of the answer to one request on a new connection."""
        return await (await self.client()).ask(*pieces)

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients:
            client.close()


@asynccontextmanager
async def serving(app: App = answer, limits: ClientLimits | None = None) -> AsyncIterator[Server]:
    """Serve an application on a free port, under these limits."""
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    make: Any = limited(limits or quick())
    async with asyncio.timeout(PATIENCE):
        listening = await asyncio.get_running_loop().create_server(
            lambda: make(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        server = Server(listening.sockets[0].getsockname()[1])
        try:
            yield server
        finally:
            server.close()
            listening.close()
            for task in state.tasks:
                task.cancel()


def quick(*, connections: int = 50, **times: float) -> ClientLimits:
    """Return limits with frequent checks; only the given time-outs are short."""
    long = {"keep_alive": 60.0, "headers": 60.0, "body": 60.0, "stall": 60.0, "check": 0.01}
    return ClientLimits(connections=connections, **{**long, **times})


def soon(limit: str) -> Any:
    """Return limits with one short time-out."""
    return {limit: SOON}


def request(*lines: bytes, path: bytes = b"/", version: bytes = b"1.1", body: bytes = b"") -> bytes:
    """Return a request with these header lines."""
    first = b"POST %s HTTP/%s" % (path, version)
    return b"".join(line + b"\r\n" for line in (first, *lines, b"")) + body


HOST = b"host: x"
KIB = 1024
UPGRADE = (HOST, b"connection: upgrade", b"upgrade: h2c")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(HOST, *[b"x: y"] * 99), 200),
        (request(HOST, *[b"x: y"] * 100), 431),
        (request(HOST, b"x: " + b"y" * (64 * KIB - 6)), 200),
        (request(HOST, b"x: " + b"y" * (64 * KIB - 5)), 431),
        (request(HOST, *[b"x: " + b"y" * (8 * KIB - 1)] * 7, b"x: " + b"y" * (8 * KIB - 6)), 200),
        (request(HOST, *[b"x: " + b"y" * (8 * KIB - 1)] * 7, b"x: " + b"y" * (8 * KIB - 5)), 431),
        (request(HOST, path=b"/" + b"x" * (8 * KIB - 1)), 200),
        (request(HOST, path=b"/" + b"x" * (8 * KIB)), 414),
        (b"POST /" + b"x" * (100 * KIB), 414),
        (b"POST / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * (100 * KIB), 431),
        (b"POST / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * (75 * KIB) + b"\r\n\r\n", 431),
        (request(), 400),
        (request(b"host:"), 200),
        (request(HOST, b"host: y"), 400),
        (request(HOST, HOST), 400),
        (request(version=b"1.0"), 200),
        (request(HOST, HOST, version=b"1.0"), 400),
        (request(*UPGRADE), 200),
        (request(*UPGRADE, b"content-length: 0"), 200),
        (request(*UPGRADE, b"content-length: 00"), 200),
        (request(*UPGRADE, b"content-length: 10", body=b"x" * 10), 400),
        (request(*UPGRADE, b"transfer-encoding: chunked", body=b"0\r\n\r\n"), 400),
        (request(HOST, b"content-length: 10", body=b"x" * 10), 200),
        (b"this is no HTTP\r\n\r\n", 400),
    ],
)
def test_each_limit_is_where_it_is_said_to_be(sent: bytes, status: int) -> None:
    """A request at the limit is answered; one more is refused, in JSON, and the connection ends."""

    async def ask() -> None:
        async with serving() as server:
            client = await server.client()
            assert await client.ask(sent) == status
            if status != 200:
                assert b"content-type: application/json" in client.headers
                assert b"connection: close" in client.headers
                client.close()
            assert await server.ask(GET) == 200

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("chunk", "times", "status"),
    [(b"1\r\nx\r\n", 40_000, 431), (b"a\r\n0123456789\r\n", 40_000, 200), (b"1\r\nx\r\n", 1000, 200)],
    ids=["of one byte", "of ten bytes", "of one byte, few"],
)
def test_of_what_is_no_body_only_so_much_comes_with_one(chunk: bytes, times: int, status: int) -> None:
    """Chunks of one byte cost more than they carry; any number of ten-byte chunks is accepted."""

    async def ask() -> None:
        async with serving(count) as server:
            sent = request(HOST, b"transfer-encoding: chunked")
            assert await server.ask(sent, chunk * times, b"0\r\n\r\n") == status

    asyncio.run(ask())


@pytest.mark.parametrize(("trailers", "status"), [(97, 200), (98, 200), (99, 431)])
def test_trailers_count_with_the_headers(trailers: int, status: int) -> None:
    """Although they are not used."""

    async def ask() -> None:
        async with serving(count) as server:
            client = await server.client()
            await client.send(request(HOST, b"transfer-encoding: chunked"), b"2\r\n{}\r\n0\r\n")
            await client.send(b"x: y\r\n" * trailers, b"\r\n")
            assert await client.status() == status

    asyncio.run(ask())


@pytest.mark.parametrize(("ahead", "answers"), [(17, 17), (18, 0)])
def test_only_so_many_requests_are_sent_ahead_of_their_answers(ahead: int, answers: int) -> None:
    """Sixteen may wait behind the one being answered; a client that sends more is disconnected."""

    async def ask() -> None:
        async with serving() as server:
            client = await server.client()
            await client.send(GET * ahead)
            assert [await client.status() for _ in range(answers)] == [200] * answers
            if not answers:
                assert await client.is_hung_up_on()

    asyncio.run(ask())


def test_so_much_of_an_unwanted_body_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per request: a client that is still sending reads no answer, and may send the next request."""
    monkeypatch.setattr("gateway.server.http_limits._MAX_DISCARDED", 1000)

    async def ask() -> None:
        async with serving() as server:
            client = await server.client()
            for _ in range(2):
                assert await client.ask(request(HOST, b"content-length: 1000")) == 200
                await client.send(b"x" * 1000)
            assert await client.ask(request(HOST, b"content-length: 2000")) == 200
            await client.send(b"x" * 1001)
            assert await client.is_hung_up_on()

    asyncio.run(ask())


def test_a_large_unwanted_body_is_passed_over() -> None:
    """As large as a provider's largest."""

    async def ask() -> None:
        async with serving() as server:
            client = await server.client()
            assert await client.ask(request(HOST, b"content-length: 5000000")) == 200
            await client.send(b"x" * 5_000_000)
            assert await client.ask(GET) == 200

    asyncio.run(ask())


async def wait_for_nothing(_scope: Scope, receive: Receive, _send: Send) -> None:
    """Read everything, and never answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


HALF = request(HOST, b"content-length: 10", body=b"x")


@pytest.mark.parametrize(
    ("app", "begin", "status", "limit"),
    [
        (answer, b"", None, "headers"),
        (answer, b"POST / HT", None, "headers"),
        (answer, GET, 200, "keep_alive"),
        (wait_for_nothing, HALF, None, "body"),
    ],
    ids=["silent", "half a header", "idle", "half a body"],
)
def test_each_stage_of_a_request_has_its_own_time(
    app: App, begin: bytes, status: int | None, limit: str
) -> None:
    """A client that exceeds it is disconnected, whatever the other time-outs."""

    async def ask() -> None:
        async with serving(app, quick(**soon(limit))) as server:
            for _ in range(2):
                client = await server.client()
                await client.send(begin)
                if status is not None:
                    assert await client.status() == status
                assert await client.is_hung_up_on()

    asyncio.run(ask())


CLOCK = request(HOST, path=b"/clock")


async def let_pass(server: Server, limit: str) -> None:
    """Wait until the time-out of a stage that begins now has passed."""
    client = await server.client()
    if limit == "keep_alive":
        assert await client.ask(CLOCK) == 200
    elif limit == "body":
        await client.send(HALF)
    assert await client.is_hung_up_on()


@pytest.mark.parametrize(
    ("begin", "end", "limit"),
    [
        (b"POST / HT", b"TP/1.1\r\nhost: x\r\n\r\n", "keep_alive"),
        (b"POST / HT", b"TP/1.1\r\nhost: x\r\n\r\n", "body"),
        (HALF, b"x" * 9, "headers"),
        (HALF, b"x" * 9, "keep_alive"),
        (CLOCK, GET, "headers"),
        (CLOCK, GET, "body"),
        (GET, b"", "headers"),
        (GET, b"", "body"),
        (GET, b"", "keep_alive"),
    ],
)
def test_no_stage_is_ended_by_the_time_of_another(begin: bytes, end: bytes, limit: str) -> None:
    """Nor is a request whose answer is being made: that has no time-out."""

    async def ask() -> None:
        release = asyncio.Event()

        async def slowly(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] != "/clock":
                await release.wait()
            await count(scope, receive, send)

        async with serving(slowly, quick(**soon(limit))) as server:
            client = await server.client()
            await client.send(begin)
            if begin == CLOCK:
                assert await client.status() == 200
            await let_pass(server, limit)
            await client.send(end)
            release.set()
            assert await client.status() == 200

    asyncio.run(ask())


def test_the_next_header_has_its_time_too() -> None:
    """Regardless of the time-out for an idle connection."""

    async def ask() -> None:
        async with serving(limits=quick(headers=SOON)) as server:
            client = await server.client()
            assert await client.ask(GET) == 200
            await let_pass(server, "headers")
            await client.send(b"POST / HT")
            assert await client.is_hung_up_on()

    asyncio.run(ask())


LARGE = 4_000_000


def test_only_who_does_not_read_its_answer_is_hung_up_on() -> None:
    """A client that reads may take as long as it needs for the rest."""
    stuck, release = asyncio.Event(), asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/clock":
            await count(scope, receive, send)
            return
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4000002")]}
        )
        await send({"type": "http.response.body", "body": b"x" * LARGE, "more_body": True})
        stuck.set()
        await release.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    async def ask() -> None:
        async with serving(flood, quick(stall=0.2, headers=0.2)) as server:
            reading = await server.client()
            await reading.send(GET)
            status = asyncio.create_task(reading.status())
            await stuck.wait()
            stuck.clear()
            silent = await server.client()
            await silent.send(GET)
            await stuck.wait()
            await let_pass(server, "headers")
            release.set()
            assert await status == 200
            assert reading.body.endswith(b"ok")

    asyncio.run(ask())


def test_the_most_silent_connection_makes_room() -> None:
    """Only when there is one too many; the most recently active connections stay."""

    async def ask() -> None:
        async with serving(limits=quick(connections=2)) as server:
            first, second = await server.client(), await server.client()
            assert await second.ask(GET) == 200
            assert await first.ask(GET) == 200
            third = await server.client()
            assert await third.ask(GET) == 200
            assert await second.is_hung_up_on()
            assert await first.ask(GET) == 200

    with structlog.testing.capture_logs() as lines:
        asyncio.run(ask())
    assert [line["connections"] for line in lines] == [2]


def test_where_nobody_is_silent_a_new_one_is_refused() -> None:
    """With 503; its request is not read, and the busy connections get their answers."""
    labels = {"status": "503", "reason": "connections"}
    before = REGISTRY.get_sample_value("pushgate_refused_total", labels) or 0.0

    async def ask() -> None:
        begun, release = asyncio.Event(), asyncio.Event()

        async def slowly(scope: Scope, receive: Receive, send: Send) -> None:
            begun.set()
            await release.wait()
            await answer(scope, receive, send)

        async with serving(slowly, quick(connections=1)) as server:
            busy = await server.client()
            await busy.send(GET)
            await begun.wait()
            late = await server.client()
            assert await late.ask() == 503
            assert b"retry-after: 5" in late.headers
            await late.has_ended()
            release.set()
            assert await busy.status() == 200

    with structlog.testing.capture_logs():
        asyncio.run(ask())
    assert REGISTRY.get_sample_value("pushgate_refused_total", labels) == before + 1


def test_another_protocol_is_not_spoken() -> None:
    """The request is answered as HTTP/1.1, and later bytes are not read."""

    async def ask() -> None:
        async with serving() as server:
            client = await server.client()
            assert await client.ask(request(*UPGRADE) + b"PRI * HTTP/2.0\r\n\r\n") == 200
            assert b"connection: close" in client.headers
            assert await client.is_hung_up_on()

    asyncio.run(ask())


def test_a_body_that_is_malformed_ends_its_request() -> None:
    """Its endpoint sees a disconnect, and the client gets the reason."""
    received: list[str] = []
    ended = asyncio.Event()

    async def listen(_scope: Scope, receive: Receive, _send: Send) -> None:
        while not received or received[-1] != "http.disconnect":
            received.append((await receive())["type"])
        ended.set()

    async def ask() -> None:
        async with serving(listen, quick(body=60)) as server:
            client = await server.client()
            await client.send(request(HOST, b"transfer-encoding: chunked"), b"1\r\nx\r\n")
            assert await client.ask(b"no size\r\n") == 400
            await ended.wait()

    asyncio.run(ask())
    assert received[-1] == "http.disconnect"


def test_an_answer_that_has_begun_is_not_followed_by_another() -> None:
    """If the rest of its request is malformed, the connection only ends."""
    begun = asyncio.Event()

    async def begin(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"o", "more_body": True})
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    async def ask() -> bytes:
        async with serving(begin) as server:
            client = await server.client()
            await client.send(request(HOST, b"transfer-encoding: chunked"))
            await begun.wait()
            await client.send(b"no size\r\n")
            reader = client._reader  # noqa: SLF001
            with suppress(ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                return await reader.read()
            return b""

    assert b"HTTP" not in asyncio.run(ask())


def test_who_is_refused_and_goes_on_sending_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds, which allow the client to read the answer."""
    monkeypatch.setattr("gateway.server.http_limits._DISCARD_SECONDS", SOON)

    async def ask() -> None:
        async with serving() as server:
            for begin, status in ((b"no HTTP\r\n\r\n", 400), (HALF, 200)):
                client = await server.client()
                assert await client.ask(begin) == status
                await client.send(b"x")
                assert await client.is_hung_up_on()

    asyncio.run(ask())


def test_one_timer_looks_after_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, and however active they are."""

    async def ask() -> int:
        loop = asyncio.get_running_loop()
        timers: list[float] = []
        call_later = loop.call_later

        def counted(delay: float, *given: Any, **more: Any) -> asyncio.TimerHandle:
            if delay == 600.0:
                timers.append(delay)
            return call_later(delay, *given, **more)

        monkeypatch.setattr(loop, "call_later", counted)
        async with serving(limits=quick(check=600.0)) as server:
            for client in [await server.client() for _ in range(3)]:
                for _ in range(3):
                    assert await client.ask(GET) == 200
        return len(timers)

    assert asyncio.run(ask()) == 1


ANY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "connections", "allowed", "suffices"),
    [
        ((1024, 1_048_576), 10_000, (10_512, 1_048_576), 10_000),
        ((1024, ANY), 10_000, (10_512, ANY), 10_000),
        ((1024, 4096), 10_000, (4096, 4096), 3584),
        ((600, 600), 10_000, (600, 600), 300),
        ((10_512, 20_000), 10_000, None, 10_000),
        ((20_000, 20_000), 10_000, None, 10_000),
        ((1024, 2048), 100, None, 100),
        ((ANY, ANY), 10_000, None, 10_000),
    ],
)
def test_as_many_files_are_allowed_as_connections_need(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    connections: int,
    allowed: tuple[int, int] | None,
    suffices: int,
) -> None:
    """Up to the system's limit, and never fewer than before; the rest of the process needs some too."""
    changes: list[Sequence[int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, changed: changes.append(changed))
    assert allow_open_files(connections) == suffices
    assert changes == ([allowed] if allowed else [])
