"""Records refused requests off the hot path: counts them in memory, and writes them every few seconds.

So a refused request costs the endpoint a look into a dictionary, and a flood costs the store one small
transaction every few seconds. A crash loses what was counted since the last transaction.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from http import HTTPStatus

import sqlalchemy
import structlog

from gateway.errors import StoreUnavailable
from gateway.store import redeliveries, refusals
from gateway.store.database import Database
from gateway.store.refusals import Refusal

log = structlog.get_logger()

_INTERVAL = 2.0
# The limits of what is counted between two writes. Beyond them, a request with a new reason or from a new
# client is not recorded; the metrics count it nevertheless.
_MAX_WAITING = 500
_MAX_OF_CONNECTION = 20
# When the reason of a refusal may have been removed, so that the provider is requested to deliver again.
_REPAIRED_AFTER = timedelta(minutes=10)


@dataclass(slots=True)
class _Counted:
    """Requests of one group. Mutable, because a copy for each request would cost ten times as much."""

    first: Refusal
    latest: Refusal
    count: int = 1


class RefusalLog:
    """Counts refused requests, and writes them to the store."""

    def __init__(self, database: Database, *, interval: float = _INTERVAL) -> None:
        """Write at most once in `interval` seconds; the first refusal starts a task for that."""
        self._database = database
        self._interval = interval
        self._waiting: dict[str | None, dict[tuple[object, ...], _Counted]] = {}
        self._size = 0
        self._ending = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    def add(self, refusal: Refusal, *, is_of_connection: bool = True) -> None:
        """Count a refused request. All requests without a connection share the limit of one connection."""
        alike = self._waiting.setdefault(refusal.connection if is_of_connection else None, {})
        group = refusal.group
        counted = alike.get(group)
        if counted is not None:
            counted.latest = refusal
            counted.count += 1
        elif len(alike) < _MAX_OF_CONNECTION and self._size < _MAX_WAITING:
            alike[group] = _Counted(refusal, refusal)
            self._size += 1
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="refusal log")

    async def stop(self) -> None:
        """Write what is waiting, then stop."""
        self._ending.set()
        if self._writer is not None:
            await self._writer

    async def _write(self) -> None:
        """Write until nothing is waiting, each time after a pause in which more may come."""
        while self._size:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval):
                    await self._ending.wait()
            waiting, self._waiting, self._size = self._waiting, {}, 0
            found = [
                replace(counted.latest, first_at=counted.first.first_at, count=counted.count)
                for alike in waiting.values()
                for counted in alike.values()
            ]
            try:
                await self._database.write(_record, found)
            except StoreUnavailable as error:
                # Not kept: while the store is away, requests are not refused but answered with 503.
                log.warning("refused requests are not recorded", count=len(found), reason=str(error))
            except Exception:
                log.exception("refused requests cannot be recorded")


def _record(conn: sqlalchemy.Connection, found: Sequence[Refusal]) -> None:
    """Store refusals, and let the providers' logs be searched for what was not verified."""
    refusals.record(conn, found)
    unverified = [each for each in found if each.connection and each.status == HTTPStatus.UNAUTHORIZED]
    if unverified:
        at = max(each.last_at for each in unverified) + _REPAIRED_AFTER
        redeliveries.make_due(conn, {each.connection for each in unverified if each.connection}, at=at)
