"""The tasks of a process that work on connections, each on one, and how they get their work."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.store.notify import Waiter
from gateway.worker.polling import claim_safely, poll, return_claim


class Member(Protocol):
    """Whoever claims some connections and works on each of them."""

    async def claim(self, most: int) -> Sequence[str]:
        """Claim up to so many connections."""

    async def work_on(self, connection_id: str) -> None:
        """Work on a claimed connection to the end of its turn. Raises nothing."""

    async def give_back(self, connection_ids: Sequence[str]) -> None:
        """Release claimed connections before the end of their turns. Raises `StoreUnavailable`."""


class Crew:
    """A task for each claimed connection, at most `places` at once, and one poller that claims for all.

    `join` returns a member for each claim: leases of different claims have different owners, so that a task
    that has lost its lease cannot take a later one of the same connection for its own.
    """

    def __init__(self, join: Callable[[], Member], *, places: int, wakeups: Waiter) -> None:
        """Begin without work."""
        self._join, self._places, self._wakeups = join, places, wakeups
        self._tasks: dict[asyncio.Task[None], tuple[Member, str]] = {}

    async def run(self, *, failure: str, seconds: float) -> None:
        """Claim and work until cancelled; then end the tasks, and give back what they held."""
        try:
            await poll(self._claim, wakeups=self, failure=failure, seconds=seconds)
        finally:
            await self._end()

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - as every `Waiter`
        """Return at a notification, after `timeout` seconds, or when a task ends and leaves its place."""
        notified = asyncio.create_task(self._wakeups.wait(timeout))
        try:
            await asyncio.wait({notified, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            notified.cancel()
            await asyncio.wait({notified})

    async def _claim(self) -> bool:
        """Claim as many connections as there are free places; return whether to claim again at once."""
        self._tasks = {task: of for task, of in self._tasks.items() if not task.done()}
        free = self._places - len(self._tasks)
        if free == 0:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            return True
        member = self._join()
        claimed = await claim_safely(member.claim(free), member.give_back)
        for one in claimed:
            self._tasks[asyncio.create_task(member.work_on(one))] = (member, one)
        return bool(claimed)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for task, (member, one) in self._tasks.items():
            if task.cancelled():
                await return_claim([one], member.give_back)
