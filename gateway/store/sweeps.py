"""Sweeps: when a connection's refs are compared with the remote's, and what came of it.

Every connection has one row. Whoever takes a sweep that is due puts its next one off by a lease, so that one
process sweeps at a time, and another takes over from one that died.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection as Transaction
from sqlalchemy import select, update

from gateway.store import deliveries as delivery_records
from gateway.store.bulk import upsert_rows
from gateway.store.deliveries import Arrival, Receipt, Verdict
from gateway.store.tables import connections, deliveries, refs, sweeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep that was claimed, until `due_at`.

    `asked_by` is the delivery that said that something was pushed but not what. `is_first` says that nothing
    is known of the remote yet, so that its refs are learned and not taken for pushes.
    """

    connection: str
    due_at: datetime
    asked_by: str | None
    attempts: int
    is_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepState:
    """How a connection's last sweep went: `reason` tells what keeps it from succeeding."""

    due_at: datetime
    swept_at: datetime | None
    reason: str | None


def claim(transaction: Transaction, *, now: datetime, until: datetime) -> Sweep | None:
    """Take the sweep that is overdue for longest; None where none is due."""
    query = (
        select(sweeps)
        .join(connections, connections.c.id == sweeps.c.connection)
        .where(sweeps.c.due_at <= now, connections.c.deleted_at.is_(None))
        .order_by(sweeps.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True, of=sweeps)
    )
    row = transaction.execute(query).one_or_none()
    if row is None:
        return None
    transaction.execute(update(sweeps).where(sweeps.c.connection == row.connection).values(due_at=until))
    return Sweep(
        connection=row.connection,
        due_at=until,
        asked_by=row.asked_by,
        attempts=row.attempts,
        is_first=row.swept_at is None,
    )


def known_refs(transaction: Transaction, connection: str) -> dict[str, str | None]:
    """Return where each ref of a connection stood last, None for one that was deleted."""
    query = select(refs.c.ref, refs.c.after).where(refs.c.connection == connection)
    return {row.ref: row.after for row in transaction.execute(query)}


def record(
    transaction: Transaction,
    sweep: Sweep,
    arrival: Arrival,
    *,
    learned: Mapping[str, str],
    next_at: datetime,
) -> Receipt | None:
    """End a sweep: keep what it found, less what deliveries have told meanwhile; None where nothing is left.

    `arrival` has a ref update for each ref that is not where it was when the sweep began; `learned` are refs,
    and the ids they are at, that were there before anything was delivered.
    """
    known = known_refs(transaction, sweep.connection)
    news = tuple(move for move in arrival.updates if known.get(move.ref) == move.before)
    fresh = {ref: at for ref, at in learned.items() if ref not in known}
    receipt = None
    if news or fresh:
        verdict: Verdict = "accepted" if news else "ignored"
        [receipt] = delivery_records.record(transaction, [replace(arrival, updates=news, verdict=verdict)])
        rows = [(sweep.connection, ref, None, at, 1, arrival.id) for ref, at in fresh.items()]
        if rows:
            upsert_rows(transaction, refs, ("connection", "ref"), rows)
    if sweep.asked_by is not None:
        told = f"delivery {receipt.delivery} tells what had moved" if receipt else "nothing had moved"
        transaction.execute(
            update(deliveries)
            .where(deliveries.c.id == sweep.asked_by)
            .values(reason=f"all refs were compared with the remote's: {told}")
        )
    _end(transaction, sweep, swept_at=arrival.received_at, next_at=next_at)
    return receipt


def fail(transaction: Transaction, sweep: Sweep, reason: str, *, next_at: datetime) -> None:
    """Put a sweep off that failed; whoever asked for it is told why."""
    transaction.execute(
        update(sweeps)
        .where(sweeps.c.connection == sweep.connection)
        .values(attempts=sweep.attempts + 1, reason=reason)
    )
    _put_off(transaction, sweep, next_at=next_at)
    if sweep.asked_by is not None:
        transaction.execute(
            update(deliveries)
            .where(deliveries.c.id == sweep.asked_by)
            .values(reason=f"all refs are to be compared with the remote's, which failed so far: {reason}")
        )


def ask(transaction: Transaction, connection: str, *, now: datetime) -> None:
    """Have a connection swept now."""
    transaction.execute(update(sweeps).where(sweeps.c.connection == connection).values(due_at=now))


def state(transaction: Transaction, connection: str) -> SweepState:
    """Return how a connection's sweeps go."""
    query = select(sweeps.c.due_at, sweeps.c.swept_at, sweeps.c.reason)
    row = transaction.execute(query.where(sweeps.c.connection == connection)).one()
    return SweepState(due_at=row.due_at, swept_at=row.swept_at, reason=row.reason)


def _end(transaction: Transaction, sweep: Sweep, *, swept_at: datetime, next_at: datetime) -> None:
    mine = sweeps.c.connection == sweep.connection
    transaction.execute(update(sweeps).where(mine).values(attempts=0, swept_at=swept_at, reason=None))
    # Another delivery may have asked meanwhile: its question stays.
    asked = sweeps.c.asked_by == sweep.asked_by
    transaction.execute(update(sweeps).where(mine, asked).values(asked_by=None))
    _put_off(transaction, sweep, next_at=next_at)


def _put_off(transaction: Transaction, sweep: Sweep, *, next_at: datetime) -> None:
    """Say when the next sweep is due, unless somebody has asked for one since this one was claimed."""
    transaction.execute(
        update(sweeps)
        .where(sweeps.c.connection == sweep.connection, sweeps.c.due_at == sweep.due_at)
        .values(due_at=next_at)
    )
