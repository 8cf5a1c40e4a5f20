"""Daily tasks: the loop around each of them."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import structlog

from gateway.errors import StoreUnavailable

log = structlog.get_logger()

_EVERY = timedelta(days=1)
_AFTER_FAILURE = timedelta(hours=1)


async def run_daily(task: Callable[[datetime], Awaitable[None]], *, of: str) -> None:
    """Run a task now, and then once a day until cancelled; after a failure, again in an hour.

    `of` names in the log what the task is about.
    """
    while True:
        rest = _AFTER_FAILURE
        try:
            await task(datetime.now(UTC))
            rest = _EVERY
        except (StoreUnavailable, OSError) as error:
            log.warning("a daily task has to wait", of=of, reason=str(error))
        except Exception:
            # A bug of ours must end nothing else.
            log.exception("a daily task failed", of=of)
        await asyncio.sleep(rest.total_seconds())
