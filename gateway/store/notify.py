"""Notifications that the store has something new. They are a shortcut: everyone who waits also polls.

A notifier reaches the tasks of its own process. `PostgresBridge` passes notifications on between processes
that share a PostgreSQL, by LISTEN and NOTIFY.
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
_MAX_DELAY = 30.0
# Limits how often a burst of pushes is passed on, because each notification wakes all workers.
_PAUSE_SECONDS = 0.05


class Waiter(Protocol):
    """The part of a `Subscription` that tasks need: they can wait for a notification."""

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - a time limit is no error here
        """Return at a notification, or after `timeout` seconds."""


class Subscription:
    """One waiting task. A notification between two waits is not lost: it ends the next wait at once."""

    def __init__(self) -> None:
        """Start without a notification."""
        self._wakeup = asyncio.Event()

    def wake(self) -> None:
        """End the wait that is under way, or the next one."""
        self._wakeup.set()

    async def wait(self, timeout: float | None) -> None:  # noqa: ASYNC109 - a time limit is no error here
        """Return at a notification, or after `timeout` seconds, if there is a limit."""
        try:
            async with asyncio.timeout(timeout):
                await self._wakeup.wait()
        except TimeoutError:
            return
        finally:
            self._wakeup.clear()


class Notifier:
    """Wakes its subscriptions. Every method runs on the event loop."""

    def __init__(self) -> None:
        """Start without subscriptions."""
        self._subscriptions: WeakSet[Subscription] = WeakSet()

    def subscribe(self) -> Subscription:
        """Return a new subscription; it ends when nobody refers to it any more."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        return subscription

    def add(self, subscription: Subscription) -> None:
        """Wake this subscription too, which another notifier has made."""
        self._subscriptions.add(subscription)

    def notify(self, *, source: Subscription | None = None) -> None:
        """Wake every subscription but `source`."""
        for subscription in self._subscriptions:
            if subscription is not source:
                subscription.wake()


class PostgresBridge:
    """Passes notifications on between processes that share a PostgreSQL, with one channel for each notifier.

    NOTIFY follows the transaction that it is about and is not a part of it: transactions with a NOTIFY commit
    one after the other in the whole database, and each would wait for the disk meanwhile. A notification that
    is lost because a process or the server dies in between costs one polling interval.
    """

    def __init__(self, database: Database, notifiers: Mapping[str, Notifier]) -> None:
        """Connect the notifiers with those of the same channel in other processes, once it runs."""
        self._database = database
        self._notifiers = notifiers
        self._own = {channel: notifier.subscribe() for channel, notifier in notifiers.items()}
        self._name = secrets.token_hex(8)
        self._outage = Condition(
            "notifications of other processes are not received; the store is polled",
            over="notifications are received again",
        )

    async def run(self) -> None:
        """Pass notifications on until cancelled. While the server is away, subscribers poll."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive())
            for channel in self._notifiers:
                tasks.create_task(self._send(channel))

    async def _receive(self) -> None:
        """Notify this process of what other processes send."""
        failures = 0
        while True:
            try:
                async with self._database.listening(list(self._notifiers)) as notices:
                    failures = 0
                    self._outage.ends()
                    # What was sent while nobody listened here.
                    for channel in self._notifiers:
                        self._notify(channel)
                    async for channel, sender in notices:
                        if sender != self._name:
                            self._notify(channel)
            except StoreUnavailable as error:
                self._outage.holds(reason=str(error))
            except Exception:
                log.exception("listening for notifications failed; retrying")
            await asyncio.sleep(backoff(failures, first=_FIRST_DELAY, longest=_MAX_DELAY))
            failures += 1

    async def _send(self, channel: str) -> None:
        """Notify other processes of what happens in this one."""
        while True:
            await self._own[channel].wait(None)
            try:
                await self._database.notify(channel, self._name)
            except StoreUnavailable:
                pass  # they poll; the database logs it once for all tasks
            except Exception:
                log.exception("notifying other processes failed; they poll", channel=channel)
            await asyncio.sleep(_PAUSE_SECONDS)

    def _notify(self, channel: str) -> None:
        self._notifiers[channel].notify(source=self._own[channel])
