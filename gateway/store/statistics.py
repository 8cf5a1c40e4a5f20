"""Statistics of the last hours: deliveries by outcome over time, and how long the stages of a push took."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, get_args

import sqlalchemy
from sqlalchemy import Integer, Select, Text, column, func, select, true, values

from gateway.store.execution_tables import executions
from gateway.store.ids import delivery_ids_since
from gateway.store.outcomes import REFUSED, Outcome
from gateway.store.tables import deliveries, ref_updates, refusals

MAX_HOURS = 168
"""The longest time of which deliveries are counted: each is an entry of an index that is read."""

SAMPLE = 500
"""How many of the newest ref updates the durations are taken from."""

Stage = Literal["fetch", "plan", "publish", "total"]

# The length of a bucket, in hours, up to so many hours.
_BUCKETS = ((1, 24), (3, 72), (6, MAX_HOURS))


_STORED: Sequence[Outcome] = [outcome for outcome in get_args(Outcome) if outcome != REFUSED]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The numbers of deliveries by outcome that were received in a part of the time."""

    since: datetime
    until: datetime
    counts: dict[Outcome, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """How long a stage took, in seconds, among the `count` newest ref updates that have passed it."""

    stage: Stage
    count: int
    median: float
    p95: float


def buckets(conn: sqlalchemy.Connection, *, hours: int, now: datetime) -> list[Bucket]:
    """Count the deliveries of the last hours by outcome and time, oldest first."""
    step = timedelta(hours=next(length for length, most in _BUCKETS if hours <= most))
    start = now - timedelta(hours=hours)
    limits = [start]
    while limits[-1] < now:
        limits.append(min(limits[-1] + step, now))
    parts = list(pairwise(limits))
    found = [Bucket(since=since, until=until, counts={}) for since, until in parts]
    for number, outcome, count in conn.execute(_counts(parts)):
        if count:
            found[number].counts[outcome] = count
    return found


def _counts(parts: Sequence[tuple[datetime, datetime]]) -> Select[int, Outcome, int]:
    """Count the deliveries of each outcome in each part of the time.

    One statement, which counts entries of an index and reads nothing else: a statement for each part would
    be planned again each time, which takes longer than the counting.
    """
    between = [
        (number, delivery_ids_since(since), delivery_ids_since(until))
        for number, (since, until) in enumerate(parts)
    ]
    columns: Any = (column("number", Integer), column("since", Text), column("until", Text))
    part = values(*columns, name="parts").data(between).cte("parts")
    outcome = values(column("name", Text), name="outcomes").data([(one,) for one in _STORED]).cte("outcomes")
    counted = (
        select(func.count())
        .select_from(deliveries)
        .where(
            deliveries.c.outcome == outcome.c.name,
            deliveries.c.id >= part.c.since,
            deliveries.c.id < part.c.until,
        )
    )
    each = part.join(outcome, true())
    return select(
        part.c.number, outcome.c.name, counted.correlate(part, outcome).scalar_subquery()
    ).select_from(each)


def refused(conn: sqlalchemy.Connection, *, since: datetime) -> int:
    """Return how many requests were refused by the clients that were refused since then."""
    query = select(func.coalesce(func.sum(refusals.c.count), 0)).where(refusals.c.last_at >= since)
    return int(conn.execute(query).scalar_one())


def latencies(conn: sqlalchemy.Connection, *, since: datetime) -> list[Latency]:
    """Return how long the stages of the newest pushes took, of those that were received since then."""
    newest = (
        select(ref_updates.c.seq, ref_updates.c.delivery, ref_updates.c.fetched_at, ref_updates.c.settled_at)
        .order_by(ref_updates.c.seq.desc())
        .limit(SAMPLE)
        .subquery()
    )
    published = func.min(executions.c.published_at)
    first = select(published).where(executions.c.ref_update == newest.c.seq).correlate(newest)
    query = (
        select(deliveries.c.received_at, newest.c.fetched_at, newest.c.settled_at, first.scalar_subquery())
        .join(deliveries, deliveries.c.id == newest.c.delivery)
        .where(newest.c.fetched_at.is_not(None), deliveries.c.id >= delivery_ids_since(since))
    )
    seconds: dict[Stage, list[float]] = {stage: [] for stage in get_args(Stage)}
    for row in conn.execute(query):
        for stage, duration in _stages(*row):
            seconds[stage].append(duration)
    return [_latency(stage, sorted(found)) for stage, found in seconds.items() if found]


def _stages(
    received_at: datetime, fetched_at: datetime, settled_at: datetime | None, published_at: datetime | None
) -> Sequence[tuple[Stage, float]]:
    """Return the stages that a ref update has passed. A pending one has been replayed, and counts later."""
    if settled_at is None or settled_at < fetched_at:
        return ()
    passed: list[tuple[Stage, float]] = [
        ("fetch", (fetched_at - received_at).total_seconds()),
        ("plan", (settled_at - fetched_at).total_seconds()),
    ]
    # A replay leaves a request that was published before.
    if published_at is not None and published_at >= settled_at:
        passed.append(("publish", (published_at - settled_at).total_seconds()))
        passed.append(("total", (published_at - received_at).total_seconds()))
    return passed


def _latency(stage: Stage, found: Sequence[Any]) -> Latency:
    last = len(found) - 1
    return Latency(
        stage=stage, count=len(found), median=found[round(last * 0.5)], p95=found[round(last * 0.95)]
    )
