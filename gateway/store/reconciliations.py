"""Reconciliations: when a connection's refs are compared with the remote's, and the outcome.

Every connection has one row. A process that claims a due reconciliation postpones the next one by a lease, so
that one process reconciles at a time, and another takes over when that process dies.

`gateway.store.looks` records what a look at the remote has found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import Select, select, update

from gateway.store.claims import full_hosts, lock_claims
from gateway.store.rows import from_row
from gateway.store.tables import connections, deliveries, reconciliations, refs
from gateway.text.escape import storable

MAX_DELAY = timedelta(hours=30)
"""The longest delay of a reconciliation, with any settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """A reconciliation that is claimed until `due_at`.

    `asked` is True if it was requested; `asked_by` is the delivery that reported a push without its refs.
    `is_first` is True if nothing is known of the remote yet, so that its refs are learned instead of planned.
    `seen` holds the moves that earlier looks saw, by ref: from where, to where, and from when on a second
    look confirms the move.
    """

    connection: str
    claimed_at: datetime
    due_at: datetime
    asked: bool
    asked_by: str | None
    attempts: int
    is_first: bool
    seen: Mapping[str, Sequence[str | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconciliationState:
    """The state of a connection's reconciliations.

    `delivery` records the findings of the last successful reconciliation, if any. `reason` is why none has
    succeeded since. `tried_at` is the beginning of the last reconciliation that has ended.
    """

    due_at: datetime
    tried_at: datetime | None
    reconciled_at: datetime | None
    delivery: str | None
    reason: str | None


def is_due(conn: sqlalchemy.Connection, *, now: datetime, longest: timedelta = MAX_DELAY) -> bool:
    """Return whether a reconciliation is due. It waits for no writer."""
    return any(conn.execute(query).first() is not None for query in _due(now, longest))


def claim(
    conn: sqlalchemy.Connection,
    *,
    now: datetime,
    until: datetime,
    longest: timedelta = MAX_DELAY,
    per_host: int = 0,
) -> Reconciliation | None:
    """Claim the reconciliation that has been overdue longest; None if none is due.

    A due time further ahead than `longest` was set by a wrong clock, and counts as due. At most `per_host`
    fetches and reconciliations of a git host run at once; 0 means no limit.
    """
    full: list[str] = []
    if per_host:
        # What is counted here must still be true at the end.
        lock_claims(conn)
        full = full_hosts(conn, per_host=per_host, now=now)
    for query in _due(now, longest, without=full):
        row = conn.execute(query.with_for_update(skip_locked=True, of=reconciliations)).one_or_none()
        if row is not None:
            break
    else:
        return None
    held = update(reconciliations).where(reconciliations.c.connection == row.connection)
    conn.execute(held.values(due_at=until, held_until=until))
    return from_row(
        Reconciliation,
        row,
        claimed_at=now,
        due_at=until,
        is_first=row.reconciled_at is None,
        seen=row.seen or {},
    )


def known_refs(conn: sqlalchemy.Connection, connection: str) -> dict[str, str | None]:
    """Return the last known position of each ref of a connection, None for a deleted ref."""
    query = select(refs.c.ref, refs.c.after).where(refs.c.connection == connection)
    return {row.ref: row.after for row in conn.execute(query)}


def fail(
    conn: sqlalchemy.Connection, reconciliation: Reconciliation, reason: str, *, next_at: datetime
) -> None:
    """Postpone a failed reconciliation, and record why on the delivery that requested it."""
    reason = storable(reason)
    conn.execute(
        update(reconciliations)
        .where(reconciliations.c.connection == reconciliation.connection)
        .values(attempts=reconciliation.attempts + 1, tried_at=reconciliation.claimed_at, reason=reason)
    )
    postpone(conn, reconciliation, next_at=next_at, asked=reconciliation.asked)
    if reconciliation.asked_by is not None:
        conn.execute(
            update(deliveries)
            .where(deliveries.c.id == reconciliation.asked_by)
            .values(reason=f"all refs will be compared with the remote's; this has failed so far: {reason}")
        )


def request(conn: sqlalchemy.Connection, connection: str, *, now: datetime) -> None:
    """Request a reconciliation of a connection now."""
    conn.execute(
        update(reconciliations)
        .where(reconciliations.c.connection == connection)
        .values(due_at=now, asked=True)
    )


def start_over(conn: sqlalchemy.Connection, connection: str, *, now: datetime) -> None:
    """Request a first reconciliation of a connection now, because it has another remote."""
    request(conn, connection, now=now)
    unknown = {"reconciled_at": None, "seen": None, "agreed": 0}
    conn.execute(update(reconciliations).where(reconciliations.c.connection == connection).values(**unknown))
    is_it = connections.c.id == connection
    conn.execute(update(connections).where(is_it).values(other_repository=None))
    # The known positions are those of the other remote: none is missing, and none has still to be shown.
    forgotten = {"shown": refs.c.generation, "shown_id": refs.c.after, "gaps": None}
    conn.execute(update(refs).where(refs.c.connection == connection).values(**forgotten))


def give_back(conn: sqlalchemy.Connection, reconciliation: Reconciliation, *, now: datetime) -> None:
    """Release a claimed reconciliation to other processes."""
    postpone(conn, reconciliation, next_at=now, asked=reconciliation.asked)


def states(conn: sqlalchemy.Connection, of: Sequence[str]) -> dict[str, ReconciliationState]:
    """Return the state of each connection's reconciliations."""
    rows = conn.execute(select(reconciliations).where(reconciliations.c.connection.in_(of)))
    return {row.connection: from_row(ReconciliationState, row) for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """A connection whose last reconciliation failed; `due_at` is the time of the next."""

    connection: str
    name: str
    reason: str
    due_at: datetime


def failing(conn: sqlalchemy.Connection, *, limit: int) -> list[Failing]:
    """Return up to `limit` connections whose last reconciliation has failed, by name."""
    rows = conn.execute(
        select(
            connections.c.id.label("connection"),
            connections.c.name,
            reconciliations.c.reason,
            reconciliations.c.due_at,
        )
        .join(reconciliations, reconciliations.c.connection == connections.c.id)
        .where(reconciliations.c.reason.is_not(None), connections.c.deleted_at.is_(None))
        .order_by(connections.c.name, connections.c.id)
        .limit(limit)
    )
    return [from_row(Failing, row) for row in rows]


def _due(now: datetime, longest: timedelta, *, without: Sequence[str] = ()) -> list[Select[Any]]:
    """Return the queries for a due reconciliation, and for one that a wrong clock has postponed too far.

    Leave out the hosts in `without`. These are two queries so that each uses the index.
    """
    query = (
        select(reconciliations)
        .join(connections, connections.c.id == reconciliations.c.connection)
        .where(connections.c.deleted_at.is_(None))
        .limit(1)
    )
    if without:
        query = query.where(connections.c.host.not_in(without))
    return [
        query.where(reconciliations.c.due_at <= now).order_by(reconciliations.c.due_at),
        query.where(reconciliations.c.due_at > now + longest).order_by(reconciliations.c.due_at.desc()),
    ]


def postpone(
    conn: sqlalchemy.Connection, reconciliation: Reconciliation, *, next_at: datetime, asked: bool
) -> None:
    """Set when the next reconciliation is due, unless one was requested since this one was claimed."""
    mine = reconciliations.c.connection == reconciliation.connection
    conn.execute(
        update(reconciliations)
        .where(mine, reconciliations.c.held_until == reconciliation.due_at)
        .values(held_until=None)
    )
    conn.execute(
        update(reconciliations)
        .where(mine, reconciliations.c.due_at == reconciliation.due_at)
        .values(due_at=next_at, asked=asked)
    )
