"""Finds the connections that a previous version of Pushgate has left outside the queue."""

from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.store import ready_queue
from gateway.store.database import Database
from gateway.store.notify import Subscription
from gateway.worker.polling import poll

_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRepair:
    """A look at all waiting connections: at the start, as after a rollback, and during a rolling upgrade."""

    database: Database

    async def run(self) -> None:
        """Look regularly until cancelled."""
        await poll(
            self.repair, wakeups=Subscription(), failure="the repair of the queue failed", seconds=_SECONDS
        )

    async def repair(self) -> bool:
        """Queue some connections that were left outside; return whether there were any."""
        names = await self.database.read(ready_queue.forgotten)
        if names:
            await self.database.write(ready_queue.recheck, *names, now=datetime.now(UTC))
        return bool(names)
