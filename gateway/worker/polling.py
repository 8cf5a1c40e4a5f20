"""The polling loop that the worker, the reconciler and the platform fetcher share."""

import random
from collections.abc import Awaitable, Callable

import structlog

from gateway.errors import StoreUnavailable
from gateway.store.notify import Waiter

log = structlog.get_logger()

POLL_SECONDS = 1.0


async def poll(
    work: Callable[[], Awaitable[bool]],
    *,
    wakeups: Waiter,
    failure: str,
    seconds: float | None = None,
) -> None:
    """Call `work` until cancelled; wait after a call that found nothing to do or that failed.

    `work` returns whether there was something to do. A wait ends at a notification, or after `seconds`, by
    default `POLL_SECONDS`. `failure` is the log event for an unexpected error.
    """
    while True:
        try:
            if await work():
                continue
        except StoreUnavailable:
            pass  # the database logs it once for all tasks
        except Exception:
            # A bug of ours must not end the loop. The work is tried again when its lease expires.
            log.exception(failure)
        pause = POLL_SECONDS if seconds is None else seconds
        await wakeups.wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the polls
