"""Retention: deletes what was settled long ago, in steps so small that no accept waits for one of them."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog

from gateway.store import retention
from gateway.store.database import Database, Lock

log = structlog.get_logger()

# Between two steps others write: a thousand deliveries a second are deleted at most.
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Deletes deliveries, with all that came of them, when nothing has happened to them for `keep`."""

    database: Database
    keep: timedelta

    async def run(self, now: datetime) -> None:
        """Delete what is old by `now`; nothing, while another process is the one that does."""
        if not await self.database.is_leader(Lock.RETENTION):
            return
        before, after, forgotten = now - self.keep, "", 0
        while True:
            step = await self.database.write(partial(retention.forget, before=before, after=after))
            if step is None:
                break
            after = step.last
            forgotten += step.forgotten
            await asyncio.sleep(_PAUSE_SECONDS)
        if forgotten:
            log.info("old deliveries deleted", count=forgotten, received_before=before.isoformat())
