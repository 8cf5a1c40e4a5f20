"""Records that the webhook endpoint runs, and which deliveries it could not store.

So an outage is noticed when it is over, and the deliveries that failed meanwhile are requested again.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import structlog

from gateway.errors import StoreUnavailable
from gateway.store import uptime
from gateway.store.database import Database

log = structlog.get_logger()

_INTERVAL = timedelta(seconds=15)
# Other processes have recorded that they run at most an interval ago.
_TOLERATED_AT_START = _INTERVAL + timedelta(seconds=5)
# An embedded store has one process, which records its end: each start follows an outage.
_TOLERATED_AT_EMBEDDED_START = timedelta()
_TOLERATED = 3 * _INTERVAL
# The connections that are remembered; an outage that concerns more is noticed as a gap.
_MAX_FAILED = 1000


class Uptime:
    """Records regularly that the webhook endpoint of this process runs. `notify` wakes the workers."""

    def __init__(
        self, database: Database, *, notify: Callable[[], None], clock: Callable[[], datetime] | None = None
    ) -> None:
        """Record nothing before `start`."""
        self._database, self._notify = database, notify
        self._clock = clock or (lambda: datetime.now(UTC))
        self._tolerated = _TOLERATED_AT_EMBEDDED_START if database.is_embedded else _TOLERATED_AT_START
        self._failed: set[str] = set()
        self._ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def failed(self, connection: str) -> None:
        """Remember that a delivery to a webhook URL was answered with 503."""
        if len(self._failed) < _MAX_FAILED:
            self._failed.add(connection)

    def start(self) -> None:
        """Start to record, in the running event loop."""
        self._task = asyncio.create_task(self._run(), name="uptime")

    async def stop(self) -> None:
        """Record that the endpoint ran until now."""
        self._ending.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self._ending.is_set():
            await self.record()
            with suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL.total_seconds()):
                    await self._ending.wait()
        await self.record()

    async def record(self) -> None:
        """Record that the endpoint runs. An outage of the store is noticed when it is over."""
        now, failed = self._clock(), self._failed
        self._failed = set()
        try:
            since = await self._database.write(
                uptime.record, now=now, tolerated=self._tolerated, failed=failed
            )
        except StoreUnavailable:
            self._failed |= failed
            return
        except Exception:
            log.exception("the uptime cannot be recorded")
            return
        self._tolerated = _TOLERATED
        if since is not None:
            log.warning(
                "webhooks were not received: failed deliveries are requested again",
                since=since.isoformat(),
                until=now.isoformat(),
            )
        if since is not None or failed:
            self._notify()
