"""How ref updates end: settled, given up or postponed; and what the log and the metrics report about it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import structlog

from gateway.backoff import backoff
from gateway.metrics import SETTLED, STAGE
from gateway.store.ready_queue import MAX_DELAY
from gateway.store.work_queue import PendingUpdate, Postponement, Settlement

log = structlog.get_logger()

# Planned requests wait in memory until they are recorded together.
_MAX_BYTES = 16 * 1024 * 1024
_FIRST_DELAY = 1.0
# After so long an update is given up; the reason of its last failure stays on it.
_GIVE_UP_AFTER = timedelta(days=3)


Outcome = Settlement | Postponement


def failure(update: PendingUpdate, reason: str) -> Settlement:
    """Return the settlement of an update that failed for good."""
    return Settlement(update=update, state="failed", reason=reason)


def given_up(update: PendingUpdate, reason: str) -> Settlement:
    """Return the settlement of an update that was retried for too long; `reason` is the last failure."""
    return failure(update, f"given up after {_GIVE_UP_AFTER.days} days: {reason}")


def is_overdue(update: PendingUpdate) -> bool:
    """Return whether an update has waited for so long that it is given up."""
    return _now() - update.received_at > _GIVE_UP_AFTER


def retry_later(update: PendingUpdate, reason: str) -> Outcome:
    """Return the postponement of an update, or its settlement if it has waited for too long."""
    if is_overdue(update):
        return given_up(update, reason)
    due_at = _now() + timedelta(seconds=retry_delay(update.tries))
    return Postponement(update=update, due_at=due_at, reason=reason)


def retry_delay(tries: int) -> float:
    """Return the seconds until the next try, after `tries` earlier failures."""
    return backoff(tries, first=_FIRST_DELAY, longest=MAX_DELAY.total_seconds())


def is_large(outcomes: Sequence[Outcome]) -> bool:
    """Return whether the planned requests are so large that they are recorded before more is planned."""
    settlements = (outcome for outcome in outcomes if isinstance(outcome, Settlement))
    return sum(len(request.body) for end in settlements for request in end.requests) > _MAX_BYTES


def report_settled(
    settlements: Sequence[Settlement], *, fetch_ms: float | None, plan_ms: float | None
) -> None:
    """Count settlements, and log one line for each: how the ref update went through the stages."""
    for stage, took in (("fetch", fetch_ms), ("plan", plan_ms)):
        if took is not None:
            STAGE.labels(stage).observe(took / 1000)
    for settlement in settlements:
        update = settlement.update
        SETTLED.labels(settlement.state).inc()
        STAGE.labels("received to planned").observe((_now() - update.received_at).total_seconds())
        log.info(
            "push settled",
            state=settlement.state,
            delivery=update.delivery,
            connection=update.connection,
            ref=update.ref,
            commit=update.after,
            reason=settlement.reason,
            executions=[request.id for request in settlement.requests],
            since_received_ms=round((_now() - update.received_at).total_seconds() * 1000),
            fetch_ms=None if fetch_ms is None else round(fetch_ms),
            plan_ms=None if plan_ms is None else round(plan_ms),
        )


def report_postponed(postponements: Sequence[Postponement]) -> None:
    """Log one line for each update that is retried later."""
    for postponement in postponements:
        update = postponement.update
        log.warning(
            "push postponed",
            delivery=update.delivery,
            connection=update.connection,
            ref=update.ref,
            commit=update.after,
            failed_tries=update.tries + 1,
            next_try_at=postponement.due_at.isoformat(),
            reason=postponement.reason,
        )


def _now() -> datetime:
    return datetime.now(UTC)
