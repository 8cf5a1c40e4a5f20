"""Delete old records.

A delivery is deleted together with its ref updates and their execution requests, or not at all, so that every
stored execution can be explained. The last position of each ref stays forever, because repetitions are
recognized by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy
from sqlalchemy import delete, func, or_, select

from gateway.store import commit_statuses
from gateway.store.database import Lock, lock
from gateway.store.execution_tables import execution_bodies, executions
from gateway.store.ids import delivery_ids_since
from gateway.store.run_tables import runs
from gateway.store.runs import keep_revision
from gateway.store.tables import deliveries, reconciliations, ref_updates, waiting_deliveries

# The limits of one step, unless a single delivery is larger.
_MAX_DELIVERIES = 200
_MAX_UPDATES = 500
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The last delivery that a step examined, and the number of deliveries that it deleted."""

    last: str
    forgotten: int


def forget(conn: sqlalchemy.Connection, *, before: datetime, after: str) -> Step | None:
    """Examine the next deliveries after the id `after` that are older than `before`; delete the expired ones.

    A delivery stays while one of its ref updates or requests is pending, or was settled, planned, published
    or reported about since `before`, while a reconciliation refers to it, and while a verdict of it is to be
    sent. Return None if no delivery is left to examine.
    """
    candidates = _candidates(conn, before, after)
    if not candidates:
        return None
    # So that no run is added to an execution that is being deleted.
    lock(conn, Lock.RUNS)
    keep_revision(conn)
    gone = set(candidates) - _held(conn, candidates, before)
    if gone:
        gone -= commit_statuses.end_unfinished(conn, gone)
    if gone:
        theirs = select(executions.c.seq).where(executions.c.delivery.in_(gone))
        conn.execute(delete(execution_bodies).where(execution_bodies.c.execution.in_(theirs)))
        # The runs of these executions are deleted with them, by the database.
        conn.execute(delete(executions).where(executions.c.delivery.in_(gone)))
        conn.execute(delete(ref_updates).where(ref_updates.c.delivery.in_(gone)))
        conn.execute(delete(waiting_deliveries).where(waiting_deliveries.c.delivery.in_(gone)))
        conn.execute(delete(deliveries).where(deliveries.c.id.in_(gone)))
    return Step(last=candidates[-1], forgotten=len(gone))


def _candidates(conn: sqlalchemy.Connection, before: datetime, after: str) -> list[str]:
    """Return the ids of the next deliveries within the limits of a step, and at least the first."""
    updates = (
        select(func.count())
        .select_from(ref_updates)
        .where(ref_updates.c.delivery == deliveries.c.id)
        .scalar_subquery()
    )
    query = (
        select(deliveries.c.id, func.length(deliveries.c.body), updates)
        .where(deliveries.c.id > after, deliveries.c.id < delivery_ids_since(before))
        .order_by(deliveries.c.id)
        .limit(_MAX_DELIVERIES)
    )
    taken: list[str] = []
    size = moves = 0
    for delivery, more_size, more_moves in conn.execute(query):
        size += more_size
        moves += more_moves
        if taken and (size > _MAX_BYTES or moves > _MAX_UPDATES):
            break
        taken.append(delivery)
    return taken


def _held(conn: sqlalchemy.Connection, candidates: Sequence[str], before: datetime) -> set[str | None]:
    """Return the deliveries that are pending, were settled too recently, or are referred to."""
    # Locked in a fixed order, so that no replay makes one of them pending meanwhile.
    moves = conn.execute(
        select(ref_updates.c.delivery, ref_updates.c.state, ref_updates.c.settled_at)
        .where(ref_updates.c.delivery.in_(candidates))
        .order_by(ref_updates.c.seq)
        .with_for_update()
    )
    held: set[str | None] = {
        move.delivery
        for move in moves
        if move.state == "pending" or (move.settled_at is not None and move.settled_at >= before)
    }
    recent = or_(
        executions.c.state == "pending",
        executions.c.planned_at >= before,
        executions.c.published_at >= before,
        runs.c.reported_at >= before,
    )
    reported = select(executions.c.delivery).outerjoin(runs, runs.c.execution == executions.c.seq)
    requests = reported.where(executions.c.delivery.in_(candidates), recent)
    held.update(conn.execute(requests).scalars())
    for reference in (reconciliations.c.asked_by, reconciliations.c.delivery):
        held.update(conn.execute(select(reference).where(reference.in_(candidates))).scalars())
    return held
