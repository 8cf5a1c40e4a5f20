"""A cache of what many requests read, such as webhooks and open pages."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from gateway.errors import NotFound, StoreUnavailable

MAX_AGE = 2.0
"""How many seconds other processes may use an entry as it was before a change in this process."""

MAX_CACHED = 50_000

Value = TypeVar("Value")


class LookupCache(Generic[Value]):
    """Values by key, as they were at most two seconds ago unless a request accepts older ones."""

    def __init__(
        self, read: Callable[[str], Awaitable[Value]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start empty. `read` looks a value up, or raises `NotFound`."""
        self._read = read
        self._clock = clock
        self._cached: dict[str, tuple[float, Value]] = {}
        # All requests for a key share one lookup: dozens wait whenever a busy entry expires.
        self._lookups: dict[str, asyncio.Task[Value]] = {}

    async def find(self, key: str, *, seconds: float | None = None, max_age: float = MAX_AGE) -> Value:
        """Return a value that is at most `max_age` seconds old.

        One that is older than two seconds is returned at once, and read again for the next request. Raise
        `StoreUnavailable` if a lookup that is waited for takes longer than `seconds`, if any.
        """
        entry = self._cached.get(key)
        age = math.inf if entry is None else self._clock() - entry[0]
        if entry is not None and age < MAX_AGE:
            return entry[1]
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(key))
            self._lookups[key] = lookup
            lookup.add_done_callback(partial(self._end_lookup, key))
        if entry is not None and age < max_age:
            return entry[1]
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(lookup)
        except TimeoutError:
            raise StoreUnavailable("the database does not answer in time") from None

    async def _look_up(self, key: str) -> Value:
        """Read a value into the cache, unless it has changed meanwhile."""
        started = self._clock()
        try:
            value = await self._read(key)
        except NotFound:
            self._cached.pop(key, None)
            raise
        if self._lookups.get(key) is asyncio.current_task():
            if len(self._cached) >= MAX_CACHED:
                self._cached.clear()
            self._cached[key] = (started, value)
        return value

    def _end_lookup(self, key: str, lookup: asyncio.Task[Value]) -> None:
        if self._lookups.get(key) is lookup:
            del self._lookups[key]
        if not lookup.cancelled():
            # Every request may have given up: the error then concerns nobody.
            lookup.exception()

    def clear(self) -> None:
        """Drop all values, so that the next requests read them again."""
        self._cached.clear()
        self._lookups.clear()

    def forget(self, key: str) -> None:
        """Drop a value that has changed, so that the next request reads it again."""
        self._cached.pop(key, None)
        self._lookups.pop(key, None)
