"""The cache of lookups: values that are returned while they are read again."""

import asyncio

import pytest

from gateway.errors import StoreUnavailable
from gateway.intake.lookup_cache import LookupCache
from tests.intake.local import Clock


class Readings:
    """Numbers the lookups; those after `broken_after` fail."""

    broken_after = 100

    def __init__(self) -> None:
        """Start without a lookup."""
        self.count = 0

    async def read(self, _key: str) -> int:
        """Return the number of this lookup."""
        self.count += 1
        if self.count > self.broken_after:
            raise StoreUnavailable("the database does not answer")
        return self.count


async def _settle() -> None:
    """Let the lookups end that nobody waits for."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_an_older_value_is_returned_while_it_is_read_again() -> None:
    """A request that accepts ten seconds does not wait; one that accepts two does."""

    async def run() -> None:
        clock, readings = Clock(), Readings()
        cache = LookupCache(readings.read, clock=clock)
        assert await cache.find("a") == 1
        clock.now += 3
        assert [await cache.find("a", max_age=10) for _ in range(3)] == [1, 1, 1]
        await _settle()
        assert (await cache.find("a", max_age=10), readings.count) == (2, 2)
        clock.now += 3
        assert await cache.find("a") == 3
        clock.now += 10
        assert await cache.find("a", max_age=10) == 4

    asyncio.run(run())


def test_a_failed_lookup_leaves_the_older_value_until_its_age_is_reached() -> None:
    """The request that is too late for it gets the error."""

    async def run() -> None:
        clock, readings = Clock(), Readings()
        readings.broken_after = 1
        cache = LookupCache(readings.read, clock=clock)
        await cache.find("a")
        clock.now += 9
        assert await cache.find("a", max_age=10) == 1
        await _settle()
        clock.now += 1
        with pytest.raises(StoreUnavailable):
            await cache.find("a", max_age=10)

    asyncio.run(run())


def test_a_value_that_was_forgotten_is_read_again_at_once() -> None:
    """Neither the old value nor a lookup that began before the change is used."""

    async def run() -> None:
        clock, readings = Clock(), Readings()
        cache = LookupCache(readings.read, clock=clock)
        await cache.find("a")
        clock.now += 3
        await cache.find("a", max_age=10)
        cache.clear()
        assert await cache.find("a", max_age=10) == 3

    asyncio.run(run())
