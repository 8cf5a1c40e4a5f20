"""Sweeps: when a connection's refs are compared with the remote's, and what came of it.

Every connection has one row. Whoever takes a sweep that is due puts its next one off by a lease, so that one
process sweeps at a time, and another takes over from one that died.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection as Transaction
from sqlalchemy import Select, select, update

from gateway.escape import storable
from gateway.store import deliveries as delivery_records
from gateway.store.bulk import upsert_rows
from gateway.store.deliveries import Arrival, Receipt
from gateway.store.tables import connections, deliveries, refs, sweeps
from providers.model import RefUpdate

_UNKNOWN: tuple[None, int] = (None, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A sweep that was claimed, until `due_at`.

    `asked` says that somebody waits for it, `asked_by` which delivery said that something was pushed but not
    what. `is_first` says that nothing is known of the remote yet, so that its refs are learned and not taken
    for pushes.
    """

    connection: str
    claimed_at: datetime
    due_at: datetime
    asked: bool
    asked_by: str | None
    attempts: int
    is_first: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepState:
    """How a connection's sweeps go.

    `delivery` records what the last one that succeeded has found, if anything; `reason` tells what keeps a
    sweep from succeeding since; `tried_at` is when the last one that has ended, however it did, began.
    """

    due_at: datetime
    tried_at: datetime | None
    swept_at: datetime | None
    delivery: str | None
    reason: str | None


def is_due(transaction: Transaction, *, now: datetime) -> bool:
    """Say whether a sweep is due: a look that waits for no writer."""
    return transaction.execute(_due(now)).first() is not None


def claim(transaction: Transaction, *, now: datetime, until: datetime) -> Sweep | None:
    """Take the sweep that is overdue for longest; None where none is due."""
    row = transaction.execute(_due(now).with_for_update(skip_locked=True, of=sweeps)).one_or_none()
    if row is None:
        return None
    transaction.execute(update(sweeps).where(sweeps.c.connection == row.connection).values(due_at=until))
    return Sweep(
        connection=row.connection,
        claimed_at=now,
        due_at=until,
        asked=row.asked,
        asked_by=row.asked_by,
        attempts=row.attempts,
        is_first=row.swept_at is None,
    )


def known_refs(transaction: Transaction, connection: str) -> dict[str, str | None]:
    """Return where each ref of a connection stood last, None for one that was deleted."""
    return {ref: after for ref, (after, _) in _latest(transaction, connection).items()}


def record(transaction: Transaction, sweep: Sweep, arrival: Arrival, *, next_at: datetime) -> Receipt | None:
    """End a sweep: keep what it found, less what deliveries have told meanwhile; None where nothing is left.

    `arrival` has a ref update for each ref that is not where it was when the sweep began. The first sweep
    only learns: what was there before anything was delivered is nothing that was pushed.
    """
    delivery_records.lock_connections(transaction, [sweep.connection])
    latest = _latest(transaction, sweep.connection)
    news = tuple(move for move in arrival.updates if latest.get(move.ref, _UNKNOWN)[0] == move.before)
    receipt = None
    if news and sweep.is_first:
        _learn(transaction, sweep, news, latest)
    elif news:
        [receipt] = delivery_records.record(transaction, [replace(arrival, updates=news)])
    if sweep.asked_by is not None:
        told = f"delivery {receipt.delivery} tells what was found" if receipt else "nothing had moved"
        if sweep.is_first:
            told = "it was the first look at them, so that nobody can tell what has moved"
        transaction.execute(
            update(deliveries)
            .where(deliveries.c.id == sweep.asked_by)
            .values(reason=f"all refs were compared with the remote's: {told}")
        )
    done = {"attempts": 0, "swept_at": arrival.received_at, "tried_at": sweep.claimed_at, "reason": None}
    delivery = receipt.delivery if receipt else None
    transaction.execute(
        update(sweeps).where(sweeps.c.connection == sweep.connection).values(**done, delivery=delivery)
    )
    # Another delivery may have asked meanwhile: its question stays.
    mine = sweeps.c.connection == sweep.connection, sweeps.c.asked_by == sweep.asked_by
    transaction.execute(update(sweeps).where(*mine).values(asked_by=None))
    _put_off(transaction, sweep, next_at=next_at, asked=False)
    return receipt


def fail(transaction: Transaction, sweep: Sweep, reason: str, *, next_at: datetime) -> None:
    """Put a sweep off that failed; whoever asked for it is told why."""
    reason = storable(reason)
    transaction.execute(
        update(sweeps)
        .where(sweeps.c.connection == sweep.connection)
        .values(attempts=sweep.attempts + 1, tried_at=sweep.claimed_at, reason=reason)
    )
    _put_off(transaction, sweep, next_at=next_at, asked=sweep.asked)
    if sweep.asked_by is not None:
        transaction.execute(
            update(deliveries)
            .where(deliveries.c.id == sweep.asked_by)
            .values(reason=f"all refs are to be compared with the remote's, which failed so far: {reason}")
        )


def ask(transaction: Transaction, connection: str, *, now: datetime) -> None:
    """Have a connection swept now."""
    transaction.execute(
        update(sweeps).where(sweeps.c.connection == connection).values(due_at=now, asked=True)
    )


def begin_anew(transaction: Transaction, connection: str, *, now: datetime) -> None:
    """Have a connection swept now as if for the first time: it has another remote."""
    ask(transaction, connection, now=now)
    transaction.execute(update(sweeps).where(sweeps.c.connection == connection).values(swept_at=None))


def give_back(transaction: Transaction, sweep: Sweep, *, now: datetime) -> None:
    """Let somebody else do a sweep that was claimed."""
    _put_off(transaction, sweep, next_at=now, asked=sweep.asked)


def states(transaction: Transaction, of: Sequence[str]) -> dict[str, SweepState]:
    """Return how the sweeps of each connection go."""
    rows = transaction.execute(select(sweeps).where(sweeps.c.connection.in_(of)))
    return {
        row.connection: SweepState(
            due_at=row.due_at,
            tried_at=row.tried_at,
            swept_at=row.swept_at,
            delivery=row.delivery,
            reason=row.reason,
        )
        for row in rows
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A connection whose remote does not answer as it should; `due_at` is when it is next looked at."""

    connection: str
    name: str
    reason: str
    due_at: datetime


def failing(transaction: Transaction, *, limit: int) -> list[Failing]:
    """Return up to `limit` connections whose last sweep has failed, by name."""
    rows = transaction.execute(
        select(connections.c.id, connections.c.name, sweeps.c.reason, sweeps.c.due_at)
        .join(sweeps, sweeps.c.connection == connections.c.id)
        .where(sweeps.c.reason.is_not(None), connections.c.deleted_at.is_(None))
        .order_by(connections.c.name, connections.c.id)
        .limit(limit)
    )
    return [Failing(connection=row.id, name=row.name, reason=row.reason, due_at=row.due_at) for row in rows]


def _learn(
    transaction: Transaction,
    sweep: Sweep,
    found: Sequence[RefUpdate],
    latest: Mapping[str, tuple[str | None, int]],
) -> None:
    rows = [
        (sweep.connection, move.ref, move.before, move.after, latest.get(move.ref, _UNKNOWN)[1] + 1, None)
        for move in found
    ]
    upsert_rows(transaction, refs, ("connection", "ref"), rows)


def _latest(transaction: Transaction, connection: str) -> dict[str, tuple[str | None, int]]:
    """Return where each ref stood last, and how many moves of it are known."""
    query = select(refs.c.ref, refs.c.after, refs.c.generation).where(refs.c.connection == connection)
    return {row.ref: (row.after, row.generation) for row in transaction.execute(query)}


def _due(now: datetime) -> Select[Any]:
    return (
        select(sweeps)
        .join(connections, connections.c.id == sweeps.c.connection)
        .where(sweeps.c.due_at <= now, connections.c.deleted_at.is_(None))
        .order_by(sweeps.c.due_at)
        .limit(1)
    )


def _put_off(transaction: Transaction, sweep: Sweep, *, next_at: datetime, asked: bool) -> None:
    """Say when the next sweep is due, unless somebody has asked for one since this one was claimed."""
    transaction.execute(
        update(sweeps)
        .where(sweeps.c.connection == sweep.connection, sweeps.c.due_at == sweep.due_at)
        .values(due_at=next_at, asked=asked)
    )
