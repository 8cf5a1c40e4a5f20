"""Gives up executions about which nothing was reported for too long."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from gateway.publish.reports import Hearing
from gateway.store import silence
from gateway.store.database import Database
from gateway.store.notify import Subscription
from gateway.worker.polling import poll

log = structlog.get_logger()

_SECONDS = 60.0
# How long reports must have been received without a break: those of an outage are taken in meanwhile.
_GRACE_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceWatcher:
    """Gives up executions whose limit of silence is over; `limit` is the setting's, None for no limit.

    While this process does not receive reports, and for some time after that, silence proves nothing. Calls
    `notify` after a change.
    """

    database: Database
    hearing: Hearing
    limit: timedelta | None
    notify: Callable[[], None]

    async def run(self) -> None:
        """Look regularly until cancelled."""
        await poll(
            self.watch,
            wakeups=Subscription(),
            failure="the watch for silent runners failed",
            seconds=_SECONDS,
        )

    async def watch(self) -> bool:
        """Give up some executions; return whether there were any."""
        now = datetime.now(UTC)
        if not self.hearing.has_lasted(_GRACE_SECONDS):
            return False
        if not await self.database.read(silence.is_due, limit=self.limit, now=now):
            return False
        for name in await self.database.write(silence.end, limit=self.limit, now=now):
            log.warning("nothing was reported about an execution for too long: it is lost", id=name)
        self.notify()
        return True
