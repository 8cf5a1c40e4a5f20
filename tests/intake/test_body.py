"""Reading bodies: slow ones, and the cost of deadlines for the others."""

import asyncio
from collections.abc import Callable, MutableMapping
from contextvars import Context
from typing import Any, TypeVarTuple

import pytest

from gateway.intake.body import BodyReader, Disconnected, TooLarge, TooMuch, TooSlow

Ts = TypeVarTuple("Ts")
SCOPE: MutableMapping[str, Any] = {"headers": []}


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts the timers it is asked for."""

    timers = 0

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Count the timer, and set it."""
        self.timers += 1
        return super().call_later(delay, callback, *args, context=context)


def test_one_timer_looks_after_all_bodies() -> None:
    """Even if each body is complete before the next one comes."""

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b"x", "more_body": False}

    async def read_many() -> int:
        reader = BodyReader(limit=10)
        for _ in range(100):
            assert await reader.read(SCOPE, receive) == b"x"
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        return loop.timers

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        assert runner.run(read_many()) == 1


def test_a_body_that_does_not_arrive_is_given_up() -> None:
    """Its request gets an answer, and the reading task goes on; a cancelled task ends as usual."""

    async def receive() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def read_slowly() -> None:
        reader = BodyReader(limit=10, seconds=0)
        with pytest.raises(TooSlow):
            await reader.read(SCOPE, receive)
        current = asyncio.current_task()
        assert current is not None
        assert not current.cancelling()
        reading = asyncio.create_task(BodyReader(limit=10).read(SCOPE, receive))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    asyncio.run(read_slowly())


def read(reader: BodyReader, *messages: MutableMapping[str, Any], announced: int | None = None) -> bytes:
    """Read a body that arrives in these messages; fail if more are read."""
    waiting = list(messages)
    headers = [] if announced is None else [(b"content-length", str(announced).encode())]

    async def receive() -> MutableMapping[str, Any]:
        return waiting.pop(0)

    return asyncio.run(reader.read({"headers": headers}, receive))


def part(body: bytes, *, more: bool = True) -> MutableMapping[str, Any]:
    """Return a part of a body."""
    return {"type": "http.request", "body": body, "more_body": more}


GONE = {"type": "http.disconnect"}


@pytest.mark.parametrize("before", [[], [part(b"{")], [part(b"{"), part(b"}")]], ids=["none", "one", "two"])
def test_half_a_body_is_never_taken_for_a_whole_one(before: list[MutableMapping[str, Any]]) -> None:
    """A client that disconnects in the middle has sent nothing; its memory is free again."""
    reader = BodyReader(limit=10)
    for _ in range(3):
        with pytest.raises(Disconnected):
            read(reader, *before, GONE)
    assert reader._held == 0  # noqa: SLF001 - what is left over after years is what is tested
    assert read(reader, part(b"{"), part(b"}", more=False)) == b"{}"


def test_a_body_is_refused_as_soon_as_it_is_known_to_be_too_large() -> None:
    """With an announced length, before anything is received; otherwise at the first byte too many."""
    reader = BodyReader(limit=10)
    with pytest.raises(TooLarge):
        read(reader, announced=11)
    with pytest.raises(TooLarge):
        read(reader, part(b"x" * 11))
    with pytest.raises(TooLarge):
        read(reader, part(b"x" * 6), part(b"x" * 5))
    assert read(reader, part(b"x" * 10, more=False), announced=10) == b"x" * 10
    assert read(reader, part(b"x" * 6), part(b"x" * 4, more=False)) == b"x" * 10


def test_all_bodies_together_hold_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that would exceed the limit gets a 503; memory that is released admits the next one."""
    monkeypatch.setattr("gateway.intake.body._MAX_HELD_BYTES", 15)

    async def read_two() -> None:
        reader, is_held, may_end = BodyReader(limit=10), asyncio.Event(), asyncio.Event()

        async def slowly() -> MutableMapping[str, Any]:
            if is_held.is_set():
                await may_end.wait()
                return part(b"", more=False)
            is_held.set()
            return part(b"x" * 10)

        async def quickly() -> MutableMapping[str, Any]:
            return part(b"x" * 6)

        first = asyncio.create_task(reader.read(SCOPE, slowly))
        await is_held.wait()
        with pytest.raises(TooMuch):
            await reader.read(SCOPE, quickly)
        may_end.set()
        assert await first == b"x" * 10
        with pytest.raises(TooLarge):
            await reader.read(SCOPE, quickly)

    asyncio.run(read_two())


def test_the_length_is_announced_by_one_header_only() -> None:
    """Other headers with numbers are ignored; a value that is not a number announces nothing."""
    others = [(b"x-number", b"0"), (b"accept", b"0")]

    async def receive() -> MutableMapping[str, Any]:
        return part(b"x", more=False)

    def read_with(*headers: tuple[bytes, bytes]) -> bytes:
        return asyncio.run(BodyReader(limit=10).read({"headers": headers}, receive))

    with pytest.raises(TooLarge):
        read_with(*others, (b"content-length", b"11"))
    assert read_with((b"x-number", b"11"), (b"accept", b"11")) == b"x"
    assert read_with((b"content-length", b"many")) == b"x"


def test_what_a_message_leaves_out_has_the_defaults_of_asgi() -> None:
    """Without `body` it is empty, without `more_body` it is the last."""
    assert read(BodyReader(limit=10), {"type": "http.request"}) == b""
    assert read(BodyReader(limit=10), part(b"x"), {"type": "http.request", "body": b"y"}) == b"xy"
    assert read(BodyReader(limit=0), part(b"", more=False)) == b""


def test_parts_of_any_size_count_fully() -> None:
    """Every part is counted, not only the first or last, and all memory is released again."""
    reader = BodyReader(limit=10)
    for sizes in ([1, 3, 7], [7, 3, 1], [3, 1, 7], [0, 11], [5, 6, 0]):
        with pytest.raises(TooLarge):
            read(reader, *(part(b"x" * size) for size in sizes))
        assert reader._held == 0  # noqa: SLF001 - what is left over after years is what is tested
    for sizes in ([1, 3, 6], [6, 3, 1], [0, 10], [10, 0]):
        *first, last = (b"x" * size for size in sizes)
        assert read(reader, *map(part, first), part(last, more=False)) == b"x" * 10
        assert reader._held == 0  # noqa: SLF001


def test_bodies_may_hold_exactly_as_much_as_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a byte more, wherever the parts are split."""
    monkeypatch.setattr("gateway.intake.body._MAX_HELD_BYTES", 6)
    reader = BodyReader(limit=10)
    assert read(reader, part(b"x" * 4), part(b"x" * 2), part(b"", more=False)) == b"x" * 6
    for sizes in ([7], [6, 1], [2, 5], [4, 2, 1]):
        with pytest.raises(TooMuch):
            read(reader, *(part(b"x" * size) for size in sizes))


def test_a_body_of_many_megabytes_is_taken() -> None:
    """In as many parts as arrive."""
    piece = b"x" * 1_000_000
    assert read(BodyReader(limit=25_000_000), *[part(piece)] * 24, part(piece, more=False)) == piece * 25


def test_only_bodies_whose_time_is_over_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are checked repeatedly, also those that begin after a pause."""
    monkeypatch.setattr("gateway.intake.body._CHECK_SECONDS", 0.001)

    async def never() -> MutableMapping[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def read_all() -> None:
        patient, hurried = BodyReader(limit=10, seconds=60), BodyReader(limit=10, seconds=0.02)
        may_end = asyncio.Event()

        async def slowly() -> MutableMapping[str, Any]:
            await may_end.wait()
            return part(b"x", more=False)

        reading = asyncio.create_task(patient.read(SCOPE, slowly))
        for _ in range(2):
            with pytest.raises(TooSlow):
                await hurried.read(SCOPE, never)
            hurried._check(asyncio.get_running_loop())  # noqa: SLF001 - nobody reads: a pause
            assert not hurried._is_checking  # noqa: SLF001
        may_end.set()
        assert await reading == b"x"

    async def guarded() -> None:
        async with asyncio.timeout(10):
            await read_all()

    asyncio.run(guarded())


def test_slow_bodies_cost_a_look_a_second() -> None:
    """Not one check in each iteration of the event loop."""

    async def read_slowly() -> int:
        started = asyncio.Event()
        may_end = asyncio.Event()

        async def slowly() -> MutableMapping[str, Any]:
            started.set()
            await may_end.wait()
            return part(b"x", more=False)

        reading = asyncio.create_task(BodyReader(limit=10).read(SCOPE, slowly))
        await started.wait()
        for _ in range(1000):
            await asyncio.sleep(0)
        may_end.set()
        await reading
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        return loop.timers

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        assert runner.run(read_slowly()) < 100
