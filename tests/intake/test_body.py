"""Reading bodies: what is slow, and what it costs to look after those that are not."""

import asyncio
from collections.abc import Callable, MutableMapping
from contextvars import Context
from typing import Any, TypeVarTuple

import pytest

from gateway.intake.body import BodyReader, TooSlow

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
        """Count, and do it."""
        self.timers += 1
        return super().call_later(delay, callback, *args, context=context)


def test_one_timer_looks_after_all_bodies() -> None:
    """Also where each is complete before the next one comes."""

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
    """Its request gets an answer, and the task that reads goes on; one that is cancelled ends as ever."""

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
