"""Clients that are slow, silent or too many."""

import asyncio
import resource
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from starlette.types import Receive, Scope, Send

from gateway.metrics import REGISTRY
from gateway.server.http_limits import allow_open_files
from tests.server.serving import GET, HOST, SOON, App, Server, answer, count, quick, request, serving, soon

if TYPE_CHECKING:
    from collections.abc import Sequence


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
