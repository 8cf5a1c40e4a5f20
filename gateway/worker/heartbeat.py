"""Tells the other processes on a database that this one lives, so that they leave its connections to it."""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import structlog

from gateway.errors import StoreUnavailable
from gateway.store import claims
from gateway.store.database import Database

log = structlog.get_logger()

_EVERY = claims.GONE_AFTER / 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """The heartbeat of one process, by the name under which it claims."""

    database: Database
    process: str

    async def run(self) -> None:
        """Tell until cancelled; then tell that it is over."""
        try:
            while True:
                # The database logs it, for all tasks at once.
                with contextlib.suppress(StoreUnavailable):
                    await self.database.write(
                        partial(claims.beat, process=self.process, now=datetime.now(UTC))
                    )
                await asyncio.sleep(_EVERY.total_seconds())
        finally:
            await self._leave()

    async def _leave(self) -> None:
        try:
            await self.database.write(partial(claims.leave, process=self.process))
        except StoreUnavailable as error:
            log.warning("the others will notice that this process has ended", reason=str(error))
