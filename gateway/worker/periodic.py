"""The loop around daily tasks."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog

from gateway.errors import StoreUnavailable

log = structlog.get_logger()

_INTERVAL = timedelta(days=1)
_AFTER_FAILURE = timedelta(hours=1)


async def run_daily(task: Callable[[datetime], Awaitable[None]], *, of: str) -> None:
    """Run a task now, and then once a day until cancelled. After a failure, run it again in an hour.

    `of` is the task's subject in the log.
    """
    while True:
        pause = _AFTER_FAILURE
        try:
            await task(datetime.now(UTC))
            pause = _INTERVAL
        except (StoreUnavailable, OSError) as error:
            log.warning("a daily task is retried in an hour", of=of, reason=str(error))
        except Exception:
            # A bug in one task must not end the others.
            log.exception("a daily task failed", of=of)
        await asyncio.sleep(pause.total_seconds())
