"""Tells those who wait that the store has something new. Only a shortcut: they poll beneath it.

A doorbell is heard in its own process. Between processes that share a PostgreSQL a wire carries the rings.
"""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Protocol
from weakref import WeakSet

import structlog

from gateway.backoff import backoff
from gateway.errors import StoreUnavailable
from gateway.logs import Condition
from gateway.store.database import Database

log = structlog.get_logger()

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
# A storm of pushes is told so many times a second, not once for each: each time wakes all workers there are.
_PAUSE_SECONDS = 0.05


class Waiter(Protocol):
    """Waits for news of the store: what those need to know of a listener who have no bell."""

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - a time limit is no error here
        """Return at news, or after `timeout` seconds."""


class Subscription:
    """One who waits. A ring between two waits is not missed: it ends the next one at once."""

    def __init__(self) -> None:
        """Begin with nothing heard."""
        self._heard = asyncio.Event()

    def hear(self) -> None:
        """End the wait that is under way, or the next one."""
        self._heard.set()

    async def wait(self, timeout: float | None) -> None:  # noqa: ASYNC109 - a time limit is no error here
        """Return at a ring, or after `timeout` seconds, if there is a limit."""
        try:
            async with asyncio.timeout(timeout):
                await self._heard.wait()
        except TimeoutError:
            return
        finally:
            self._heard.clear()


class Notifier:
    """Rung on the event loop, heard by every listener."""

    def __init__(self) -> None:
        """Begin without listeners."""
        self._listeners: WeakSet[Subscription] = WeakSet()

    def listener(self) -> Subscription:
        """Return a new listener; it is forgotten when nobody holds it any more."""
        listener = Subscription()
        self._listeners.add(listener)
        return listener

    def ring(self, *, by: Subscription | None = None) -> None:
        """Wake every listener but the one who rings."""
        for listener in self._listeners:
            if listener is not by:
                listener.hear()


class PostgresBridge:
    """Carries rings between the processes that share a PostgreSQL, by NOTIFY on one channel for each bell.

    NOTIFY comes after the transaction that it tells of, not with it: transactions that notify commit one
    after the other in the whole database, and each would wait for the disk meanwhile. A ring that is lost
    because a process or the server dies in between costs one poll.
    """

    def __init__(self, database: Database, bells: Mapping[str, Notifier]) -> None:
        """Tie bells together with those of the same channel in other processes, once it runs."""
        self._database = database
        self._bells = bells
        self._own = {channel: bell.listener() for channel, bell in bells.items()}
        self._name = secrets.token_hex(8)
        self._is_deaf = Condition(
            "rings of other processes are not heard; the store is polled", over="rings are heard again"
        )

    async def run(self) -> None:
        """Carry rings until cancelled. While the server is away the listeners poll."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hear())
            for channel in self._bells:
                tasks.create_task(self._tell(channel))

    async def _hear(self) -> None:
        """Ring here what others tell."""
        failures = 0
        while True:
            try:
                async with self._database.listening(list(self._bells)) as notices:
                    failures = 0
                    self._is_deaf.ends()
                    # What was told while nobody listened here.
                    for channel in self._bells:
                        self._ring(channel)
                    async for channel, teller in notices:
                        if teller != self._name:
                            self._ring(channel)
            except StoreUnavailable as error:
                self._is_deaf.holds(reason=str(error))
            except Exception:
                log.exception("listening failed; it is tried again")
            await asyncio.sleep(backoff(failures, first=_FIRST_DELAY, longest=_LONGEST_DELAY))
            failures += 1

    async def _tell(self, channel: str) -> None:
        """Tell others what rings here."""
        while True:
            await self._own[channel].wait(None)
            try:
                await self._database.notify(channel, self._name)
            except StoreUnavailable:
                pass  # they poll; the database logs it, for all tasks at once
            except Exception:
                log.exception("telling other processes failed; they poll", channel=channel)
            await asyncio.sleep(_PAUSE_SECONDS)

    def _ring(self, channel: str) -> None:
        self._bells[channel].ring(by=self._own[channel])
