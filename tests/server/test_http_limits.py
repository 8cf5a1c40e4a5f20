"""The limits of the HTTP server, over sockets in this event loop: the exact value of each."""

import asyncio
from contextlib import suppress

import pytest
from starlette.types import Receive, Scope, Send

from tests.server.serving import GET, HOST, count, quick, request, serving

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
