"""What is looked after once a day: the one loop around each such task."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog

from gateway.errors import StoreUnavailable

log = structlog.get_logger()

_EVERY = timedelta(days=1)
_AFTER_FAILURE = timedelta(hours=1)


async def run_daily(sweep: Callable[[datetime], Awaitable[None]], *, of: str) -> None:
    """Sweep now, and then once a day until cancelled; again in an hour where it failed.

    `of` tells in the log what is looked after.
    """
    while True:
        rest = _AFTER_FAILURE
        try:
            await sweep(datetime.now(UTC))
            rest = _EVERY
        except (StoreUnavailable, OSError) as error:
            log.warning("a daily sweep has to wait", of=of, reason=str(error))
        except Exception:
            # A bug of ours: nothing else is to end with it.
            log.exception("a daily sweep failed", of=of)
        await asyncio.sleep(rest.total_seconds())
