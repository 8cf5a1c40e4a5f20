"""Finds the outcomes of deliveries that a previous version of Pushgate has written."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from gateway.store import outcomes
from gateway.store.database import Database, Lock
from gateway.store.notify import Subscription
from gateway.worker.polling import poll

log = structlog.get_logger()

_SECONDS = 60.0
_BATCH = 500
# Others write between two batches.
_PAUSE_SECONDS = 0.1
# How long ago the previous version may have worked, when everything that it may have changed is read again.
_UPGRADE = timedelta(days=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRepair:
    """A look at what the previous version has written: after the upgrade, and while it goes on."""

    database: Database

    async def run(self) -> None:
        """Look regularly until cancelled."""
        await poll(
            self.repair,
            wakeups=Subscription(),
            failure="the repair of outcomes failed",
            seconds=_SECONDS,
            pause=_PAUSE_SECONDS,
        )

    async def repair(self) -> bool:
        """Store missing outcomes, the newest first, or those that nobody waits for any more.

        Return whether there are more.
        """
        if not await self.database.is_leader(Lock.RETENTION):
            return False
        if missing := await self.database.read(outcomes.unknown, limit=_BATCH):
            await self._refresh(missing)
            return True
        after: str | None = ""
        while after is not None:
            found, after = await self.database.read(outcomes.stale, after=after, limit=_BATCH)
            await self._refresh(found)
        return False

    async def check_recent(self, now: datetime) -> None:
        """Check the outcomes of all deliveries that were received or replayed in the last days.

        The previous version may have replayed and ended one between two looks.
        """
        if not await self.database.is_leader(Lock.RETENTION):
            return
        since, after = now - _UPGRADE, ""
        await self._refresh(await self.database.read(outcomes.replayed, since=since, limit=_BATCH))
        while ids := await self.database.read(outcomes.received, since=since, after=after, limit=_BATCH):
            await self._refresh(ids)
            after = ids[-1]

    async def _refresh(self, ids: Sequence[str]) -> None:
        """Store the outcomes of deliveries, so few at once that accepting new ones never waits for long."""
        if not ids:
            return
        changed = await self.database.write(outcomes.refresh, ids)
        if changed:
            log.info("outcomes of deliveries stored", count=changed)
        await asyncio.sleep(_PAUSE_SECONDS)
