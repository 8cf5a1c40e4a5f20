"""The polling loop that the worker, the reconciler and the platform fetcher share, and how it claims work."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import structlog

from gateway.errors import StoreUnavailable
from gateway.store.database import Database
from gateway.store.notify import Waiter

T = TypeVar("T")

log = structlog.get_logger()

POLL_SECONDS = 1.0

PAUSE_SECONDS = 0.2
"""The pause of pollers for which most notifications mean no work, and which nobody waits for."""


async def poll(
    work: Callable[[], Awaitable[bool]],
    *,
    wakeups: Waiter,
    failure: str,
    seconds: float | None = None,
    pause: float = 0.0,
) -> None:
    """Call `work` until cancelled; wait after a call that found nothing to do or that failed.

    `work` returns whether there was something to do. A wait ends at a notification, or after `seconds`, by
    default `POLL_SECONDS`, but not before `pause` seconds. `failure` is the log event for an unexpected
    error.
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
        await asyncio.sleep(pause)
        longest = POLL_SECONDS if seconds is None else seconds
        await wakeups.wait(longest * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the polls


async def claim_if_due(
    database: Database,
    is_due: Callable[..., bool],
    claim: Callable[..., T | None],
    *,
    lease: timedelta,
    at: datetime | None = None,
    **how: Any,
) -> T | None:
    """Claim a task for as long as `lease`; None if none is due. The look for one waits for no writer.

    `is_due` takes the time, by default the current one, `claim` also the end of the lease and `how`.
    """
    now = at or datetime.now(UTC)
    if not await database.read(is_due, now=now):
        return None
    return await database.write(claim, now=now, until=now + lease, **how)


async def claim_safely(claim: Coroutine[Any, Any, T], give_back: Callable[[T], Awaitable[None]]) -> T:
    """Claim something; a caller that is cancelled meanwhile gives it back.

    That includes a claim whose transaction is under way: it commits although nobody waits for it any more.
    """
    claiming = asyncio.ensure_future(claim)
    try:
        return await asyncio.shield(claiming)
    except asyncio.CancelledError:
        await asyncio.wait({claiming})
        # An error of the claim must not replace the cancellation, which ends the loop.
        if claiming.exception() is None:
            await return_claim(claiming.result(), give_back)
        raise


async def return_claim(claimed: T, give_back: Callable[[T], Awaitable[None]]) -> None:
    """Give back what was claimed, so that another process, or the next start, continues at once."""
    try:
        await give_back(claimed)
    except StoreUnavailable as error:
        log.warning("a claim is left to expire", reason=str(error))


async def work_on(
    claim: Coroutine[Any, Any, T | None],
    work: Callable[[T], Awaitable[None]],
    give_back: Callable[[T], Awaitable[None]],
) -> bool:
    """Claim something and work on it; return whether there was anything to claim.

    A caller that is cancelled gives back what it has claimed. So does one whose work has failed at the store,
    once the store answers: until then, the claim would count for as long as a claim may last.
    """

    async def give_back_any(claimed: T | None) -> None:
        if claimed is not None:
            await give_back(claimed)

    claimed = await claim_safely(claim, give_back_any)
    if claimed is None:
        return False
    try:
        await work(claimed)
    except asyncio.CancelledError:
        await return_claim(claimed, give_back)
        raise
    except StoreUnavailable:
        await _return_until_taken(claimed, give_back)
        raise
    return True


async def _return_until_taken(claimed: T, give_back: Callable[[T], Awaitable[None]]) -> None:
    while True:
        with suppress(StoreUnavailable):
            return await give_back(claimed)
        await asyncio.sleep(POLL_SECONDS)
