"""How ref updates end: settled, given up or postponed; and what the log and the metrics report about it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import structlog

from gateway.backoff import backoff
from gateway.errors import FetchError
from gateway.fetch.reasons import cause_of
from gateway.metrics import GIT_HOSTS, POSTPONED, PUSH_SECONDS, SETTLED, stage
from gateway.store.ready_queue import MAX_DELAY
from gateway.store.work_queue import PendingUpdate, Postponement, Settlement
from providers.clone_urls import host_of

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


def retry_later(update: PendingUpdate, error: FetchError, *, url: str) -> Outcome:
    """Return the postponement of an update, or its settlement if it has waited for too long."""
    reason = str(error)
    if is_overdue(update):
        return given_up(update, reason)
    count_postponed(url, error)
    due_at = _now() + timedelta(seconds=retry_delay(update.tries))
    return Postponement(update=update, due_at=due_at, reason=reason)


def count_postponed(url: str, error: FetchError, *, updates: int = 1) -> None:
    """Count updates of a repository that are retried later."""
    POSTPONED.labels(GIT_HOSTS.label(host_of(url)), cause_of(error)).inc(updates)


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
    if fetch_ms is not None and plan_ms is not None:
        stage("fetch", fetch_ms / 1000)
        stage("plan", plan_ms / 1000)
    for settlement in settlements:
        update = settlement.update
        since_received_ms = (_now() - update.received_at).total_seconds() * 1000
        SETTLED.labels(settlement.state).inc()
        PUSH_SECONDS.observe(since_received_ms / 1000)
        if fetch_ms is not None and plan_ms is not None:
            stage("queue", max(0.0, since_received_ms - fetch_ms - plan_ms) / 1000)
        log.info(
            "push settled",
            state=settlement.state,
            delivery=update.delivery,
            connection=update.connection,
            ref=update.ref,
            commit=update.after,
            reason=settlement.reason,
            executions=[request.id for request in settlement.requests],
            since_received_ms=round(since_received_ms),
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
