"""Retention: deletes old deliveries, in batches so small that accepting new ones never waits for a batch."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from gateway.store import idempotency, refusals, retention
from gateway.store.database import Database, Lock

log = structlog.get_logger()

# Others write between two batches. At most a thousand deliveries a second are deleted.
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Deletes deliveries, with all that resulted from them, once nothing has changed on them for `keep`.

    Records of refused requests too, once no request has been added to them for so long, and the answers that
    are kept for repeated requests, once their day is over.
    """

    database: Database
    keep: timedelta

    async def run(self, now: datetime) -> None:
        """Delete what is too old at `now`. Do nothing if another process is the leader."""
        if not await self.database.is_leader(Lock.RETENTION):
            return
        before, after, deleted = now - self.keep, "", 0
        await self.database.write(refusals.forget, before=before)
        await self.database.write(idempotency.forget, now=now)
        while True:
            batch = await self.database.write(retention.forget, before=before, after=after)
            if batch is None:
                break
            after = batch.last
            deleted += batch.forgotten
            await asyncio.sleep(_PAUSE_SECONDS)
        if deleted:
            log.info("old deliveries deleted", count=deleted, received_before=before.isoformat())
