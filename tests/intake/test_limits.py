"""What a client may send and how long it may take, over real sockets: the gateway, and its HTTP server."""

import asyncio
import gc
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from gateway.server.http_limits import ClientLimits, LimitedHttp, limited
from testing.service import Service, wait_for
from tests.intake import attacks

MIB = 1024 * 1024
HOOK = "/hooks/" + "0" * 24
ANY_SECONDS = 30.0
# As sent by clients that prefer HTTP/2, among them Java's.
UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAA")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Share one gateway among the tests of request limits."""
    with Service(tmp_path_factory.mktemp("limits") / "data", CONCURRENCY="1") as service:
        yield service


def _resident(service: Service) -> int:
    """Return how many bytes of memory the gateway's process holds."""
    [pid] = {line["pid"] for line in service.log() if line["event"] == "listening"}
    with open(f"/proc/{pid}/statm", encoding="ascii") as statm:  # noqa: PTH123 - no file, and read at once
        return int(statm.read().split()[1]) * 4096


@pytest.mark.parametrize(
    ("attack", "statuses"),
    [
        (lambda: attacks.many_headers(HOOK, 101), {431}),
        (lambda: attacks.many_headers(HOOK, 12_000), {431}),
        (lambda: attacks.many_headers(HOOK, 70, value="x" * 1000), {431}),
        (lambda: attacks.endless_headers(HOOK, 20 * MIB), {431, None}),
        (lambda: attacks.endless_header(HOOK, 20 * MIB), {431, None}),
        (lambda: attacks.endless_url(20 * MIB), {414, None}),
        (lambda: attacks.endless_line_ends(20 * MIB), {431, None}),
        (lambda: attacks.endless_trailers(HOOK, 20 * MIB), {431, 404, None}),
        (lambda: attacks.endless_extension(HOOK, 20 * MIB), {431, 404, None}),
        (lambda: attacks.tiny_chunks(HOOK, 1 * MIB), {431, 404, None}),
        (lambda: attacks.pipelined("/livez", 5_000), {200, 400, None}),
        (lambda: attacks.head(HOOK, "Content-Length: 0", host=None) + b"\r\n", {400}),
        (lambda: attacks.head(HOOK, "Host: b", "Content-Length: 0") + b"\r\n", {400}),
        (lambda: attacks.head(HOOK, "X-Gitlab-Event: a\0b", "Content-Length: 0") + b"\r\n", {400}),
        (lambda: attacks.head(HOOK, *UPGRADE, "Content-Length: 2") + b"\r\n{}", {400}),
        (
            lambda: attacks.head(HOOK, *UPGRADE, "Transfer-Encoding: chunked") + b"\r\n2\r\n{}\r\n0\r\n\r\n",
            {400},
        ),
        (lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
    ],
    ids=[
        "101 headers",
        "12,000 headers of one name",
        "70 KB of headers",
        "endless headers",
        "an endless header",
        "an endless request line",
        "endless line ends",
        "endless trailers",
        "an endless chunk extension",
        "chunks of one byte",
        "5,000 requests at once",
        "no Host",
        "two Hosts",
        "a NUL in a header",
        "another protocol, with a body",
        "another protocol, with chunks",
        "TLS",
    ],
)
def test_what_is_too_much_is_refused(
    service: Service, attack: Callable[[], bytes | Iterable[bytes]], statuses: set[int | None]
) -> None:
    """With a status or a closed connection; memory does not grow with the input; others are served."""
    before = _resident(service)
    answer = attacks.attack(attacks.address_of(service.url), attack())
    assert attacks.status_of(answer) in statuses, answer
    assert _resident(service) - before < 8 * MIB
    assert service.api.get("/connections") is not None


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (attacks.many_headers(HOOK, 98), 404),
        (attacks.many_headers(HOOK, 60, value="x" * 1000), 404),
        (attacks.head("/livez?" + "x" * 8000, method="GET") + b"\r\n", 200),
        (attacks.head("/livez", method="GET", host="") + b"\r\n", 200),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (attacks.head("/livez", *UPGRADE, "Content-Length: 0", method="GET") + b"\r\n", 200),
        (b"\r\n\r\n" + attacks.head("/livez", method="GET") + b"\r\n", 200),
        (attacks.head(HOOK, "Transfer-Encoding: chunked") + b"\r\n2;a=b\r\n{}\r\n0\r\nX-T: 1\r\n\r\n", 404),
    ],
    ids=[
        "100 headers",
        "60 KB",
        "a long URL",
        "an empty Host",
        "HTTP/1.0",
        "another protocol",
        "line ends first",
        "a trailer",
    ],
)
def test_what_is_within_the_limits_is_answered(service: Service, request_bytes: bytes, status: int) -> None:
    """Values at the limit are accepted."""
    answer = attacks.attack(attacks.address_of(service.url), request_bytes)
    assert attacks.status_of(answer) == status, answer


def test_a_refusal_is_json(service: Service) -> None:
    """Like every answer; and the connection is closed."""
    answer = attacks.attack(attacks.address_of(service.url), attacks.many_headers(HOOK, 200))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert b"connection: close" in head
    assert body == b'{"error": "bad request", "detail": "more than 100 headers, or 65536 bytes of them"}'


def test_a_trailer_is_no_header(service: Service) -> None:
    """A credential after the body proves nothing: here the admin token."""
    request = (
        attacks.head("/api/v1/connections", "Transfer-Encoding: chunked", method="GET")
        + b"\r\n2\r\n{}\r\n0\r\nAuthorization: Bearer "
        + service.admin_token.encode()
        + b"\r\n\r\n"
    )
    assert attacks.status_of(attacks.attack(attacks.address_of(service.url), request)) == 401


@pytest.mark.parametrize("size", [26_214_401, 10_000_000_000])
def test_an_announced_body_that_is_too_large_is_refused_at_once(service: Service, size: int) -> None:
    """At once 413, also if the client sends `Expect: 100-continue`."""
    connection = service.connect("https://github.example/acme/digits.git")
    address = attacks.address_of(service.url)
    assert attacks.attack(address, attacks.announced(connection["path"], size)).startswith(b"HTTP/1.1 413")
    asking = attacks.head(connection["path"], f"Content-Length: {size}", "Expect: 100-continue") + b"\r\n"
    assert attacks.attack(address, asking).startswith(b"HTTP/1.1 413")


@contextmanager
def serving(app: Callable[[Scope, Receive, Send], object], limits: ClientLimits) -> Iterator[attacks.Address]:
    """Run the HTTP server on a free port of this process, under these limits."""
    config = uvicorn.Config(
        app,
        http=limited(limits),
        ws="none",
        loop="uvloop",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=int(limits.keep_alive) or 1,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            wait_for(lambda: server.started, "the server listens")
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer at once, and read no body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def quick(**changes: float) -> ClientLimits:
    """Return limits with short time-outs."""
    times = {"keep_alive": 60.0, "headers": 60.0, "body": 60.0, "stall": 60.0, "check": 0.02, **changes}
    return ClientLimits(connections=50, **times)


@pytest.mark.parametrize(
    ("begin", "limit"),
    [
        (b"", "headers"),
        (attacks.head("/"), "headers"),
        (attacks.head("/") + b"\r\n", "keep_alive"),
        (attacks.announced("/", 1000), None),
    ],
    ids=["silent", "half a header", "idle after an answer", "half a body after an answer"],
)
def test_whoever_says_no_more_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, begin: bytes, limit: str | None
) -> None:
    """No bytes, half the headers, or nothing after the answer: each has a deadline."""
    monkeypatch.setattr("gateway.server.http_limits._DISCARD_SECONDS", 0.1)
    limits = quick(**({limit: 0.1} if limit else {}))
    with serving(answer, limits) as address, attacks.held_open(address, 20, begin) as clients:
        wait_for(lambda: all(map(attacks.is_closed, clients)), "all are closed")


def test_dribbling_headers_extends_nothing() -> None:
    """The deadline is for all the headers, however many bytes trickle in."""
    with (
        serving(answer, quick(headers=0.3)) as address,
        attacks.held_open(address, 5, attacks.head("/")) as clients,
    ):

        def all_closed() -> bool:
            for client in clients:
                attacks.dribble(client)
            return all(map(attacks.is_closed, clients))

        wait_for(all_closed, "all are closed", seconds=ANY_SECONDS)


def test_a_body_that_nobody_reads_has_a_deadline_too() -> None:
    """If the endpoint waits for something else, such as its lock."""

    async def wait(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    with (
        serving(wait, quick(body=0.1)) as address,
        attacks.held_open(address, 5, attacks.announced("/", 1000)) as clients,
    ):
        wait_for(lambda: all(map(attacks.is_closed, clients)), "all are closed")


def test_whoever_does_not_read_the_answer_is_hung_up_on() -> None:
    """A large answer is written as fast as it is read, until its deadline."""
    ended = threading.Event()

    async def flood(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"x" * MIB, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        ended.set()

    with (
        serving(flood, quick(stall=0.2)) as address,
        attacks.held_open(address, 1, attacks.head("/") + b"\r\n"),
    ):
        assert ended.wait(ANY_SECONDS)


@contextmanager
def uncollected() -> Iterator[None]:
    """Stop the garbage collector, so that only what nobody references is freed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def connections_in_memory() -> int:
    """Return how many connections of the HTTP server have not been freed."""
    return sum(isinstance(one, LimitedHttp) for one in gc.get_objects())


@pytest.mark.parametrize(
    "attack",
    [
        lambda: attacks.many_headers("/", 12_000),
        lambda: attacks.endless_header("/", MIB),
        lambda: attacks.endless_url(MIB),
        lambda: attacks.endless_extension("/", MIB),
        lambda: b"no HTTP\r\n\r\n",
        lambda: attacks.head("/", "Content-Length: 0") + b"\r\n",
    ],
    ids=[
        "12,000 headers",
        "an endless header",
        "an endless URL",
        "an endless extension",
        "malformed",
        "fine",
    ],
)
def test_a_connection_that_has_ended_leaves_nothing(attack: Callable[[], bytes | Iterable[bytes]]) -> None:
    """Its memory is freed at once, without waiting for the garbage collector, which runs seldom."""
    with uncollected(), serving(answer, quick()) as address:
        attacks.attack(address, attack())
        wait_for(lambda: not connections_in_memory(), "the connection is gone")


def test_a_connection_that_is_reset_leaves_nothing() -> None:
    """As by a client that closes its socket without reading everything."""
    with uncollected(), serving(answer, quick()) as address:
        request = attacks.head("/", "Content-Length: 0") + b"\r\n"
        with attacks.held_open(address, 1, request) as [client]:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            wait_for(lambda: client.recv(MIB).endswith(b"ok"), "it is answered")
        wait_for(lambda: not connections_in_memory(), "the connection is gone", seconds=ANY_SECONDS)


@pytest.mark.parametrize("how", ["Connection: close", "chunked", "HTTP/1.0"])
def test_a_client_that_will_not_send_again_gets_its_answer(how: str) -> None:
    """Although it still sends a body that nobody reads: closing at once would discard the answer."""
    size = 20 * MIB
    head = attacks.head("/", "Connection: close", f"Content-Length: {size}") + b"\r\n"
    body = b"x" * size
    if how == "chunked":
        head = attacks.head("/", "Connection: close", "Transfer-Encoding: chunked") + b"\r\n"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, body)
    elif how == "HTTP/1.0":
        head = head.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Connection: close\r\n", b"")
    with uncollected(), serving(answer, quick()) as address:
        for _ in range(3):
            with socket.create_connection(address, timeout=ANY_SECONDS) as client:
                client.sendall(head)
                client.sendall(body)
                received = everything(client)
            assert received.startswith(b"HTTP/1.1 200")
            assert received.endswith(b"ok")
        wait_for(lambda: not connections_in_memory(), "the connections are gone", seconds=ANY_SECONDS)


def test_who_announces_a_body_and_the_end_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of an unwanted body has a deadline."""
    monkeypatch.setattr("gateway.server.http_limits._DISCARD_SECONDS", 0.1)
    begin = attacks.head("/", "Connection: close", "Content-Length: 1000") + b"\r\n"
    with serving(answer, quick()) as address, attacks.held_open(address, 1, begin) as [client]:
        assert everything(client).endswith(b"ok")
        wait_for(lambda: has_ended(client), "it is hung up on")


def everything(client: socket.socket) -> bytes:
    """Return what the server sends before it ends its direction."""
    received = b""
    while piece := client.recv(MIB):
        received += piece
    return received


def has_ended(client: socket.socket) -> bool:
    """Return whether the server has closed the connection, and not only its own direction."""
    try:
        client.send(b"x")
    except OSError:
        return True
    return False


def test_silent_connections_make_room_for_new_ones() -> None:
    """However many there are, new requests are answered; the connections idle longest are closed."""
    with serving(answer, quick()) as address, attacks.held_open(address, 200) as silent:
        for _ in range(20):
            request = attacks.head("/", "Content-Length: 0") + b"\r\n"
            assert attacks.attack(address, request).startswith(b"HTTP/1.1 200")
        assert sum(map(attacks.is_closed, silent)) >= 150


def test_a_request_beyond_the_limit_is_refused_for_now() -> None:
    """503 with Retry-After; each finished request makes room."""
    release, begun = threading.Event(), []

    async def hold(_scope: Scope, _receive: Receive, send: Send) -> None:
        begun.append(1)
        await asyncio.to_thread(release.wait, ANY_SECONDS)
        await answer(_scope, _receive, send)

    request = attacks.head("/", "Content-Length: 0") + b"\r\n"
    limits = ClientLimits(connections=3, check=0.02)
    with serving(hold, limits) as address, attacks.held_open(address, 3, request) as busy:
        try:
            wait_for(lambda: len(begun) == 3, "all are busy")
            with socket.create_connection(address, timeout=ANY_SECONDS) as client:
                refusal = client.recv(1000)
        finally:
            release.set()
        assert refusal.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 5" in refusal
        assert [client.recv(1000)[:12] for client in busy] == [b"HTTP/1.1 200"] * 3
        assert attacks.attack(address, request).startswith(b"HTTP/1.1 200")


def test_a_client_that_is_still_sending_reads_its_answer() -> None:
    """The rest of a refused body is read and dropped, so that the answer is not lost."""
    address: attacks.Address
    with serving(answer, quick()) as address, closing(http.client.HTTPConnection(*address)) as client:
        for size in [5 * MIB, 2] * 10:
            client.request("POST", "/", b"x" * size)
            assert client.getresponse().read() == b"ok"
