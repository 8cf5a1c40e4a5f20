"""The heartbeat of a process: while it beats, other processes leave its connections to it."""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from gateway.errors import StoreUnavailable
from gateway.store import claims
from gateway.store.database import Database

log = structlog.get_logger()

_INTERVAL = claims.GONE_AFTER / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The heartbeat of one process; `process` is the name under which it claims connections."""

    database: Database
    process: str

    async def run(self) -> None:
        """Record a heartbeat regularly until cancelled; then record that the process has left."""
        try:
            while True:
                beat = asyncio.create_task(self._beat())
                try:
                    await asyncio.shield(beat)
                finally:
                    # A transaction that has begun commits; it must not do so after the departure.
                    await asyncio.wait({beat})
                await asyncio.sleep(_INTERVAL.total_seconds())
        finally:
            await self._leave()

    async def _beat(self) -> None:
        # The database logs an outage once for all tasks.
        with contextlib.suppress(StoreUnavailable):
            await self.database.write(claims.beat, process=self.process, now=datetime.now(UTC))

    async def _leave(self) -> None:
        try:
            await self.database.write(claims.leave, process=self.process)
        except StoreUnavailable as error:
            log.warning("the heartbeat is left to expire", reason=str(error))
