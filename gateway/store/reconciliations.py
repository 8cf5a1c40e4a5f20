"""Reconciliations: when a connection's refs are compared with the remote's, and the outcome.

Every connection has one row. A process that claims a due reconciliation postpones the next one by a lease, so
that one process reconciles at a time, and another takes over when that process dies.

`gateway.store.looks` records what a look at the remote has found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Row, Select, bindparam, case, delete, func, select, update

from gateway.store.bulk_sql import among
from gateway.store.claims import full_hosts, lock_claims
from gateway.store.columns import Instant
from gateway.store.ready_queue import NOW, distinct_values, least
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
    succeeded since. `tried_at` is the beginning of the last reconciliation that has ended. `default_branch`
    is None before the first that found it.
    """

    due_at: datetime
    tried_at: datetime | None
    reconciled_at: datetime | None
    delivery: str | None
    reason: str | None
    default_branch: str | None = None


_FAR: ColumnElement[datetime] = bindparam("far", type_=Instant)


@dataclass(frozen=True, slots=True)
class _Due:
    """Queries for what is due: the first row, the host that has the first, and the first row of a host."""

    first: Select[Any]
    host: Select[Any]
    of_host: Select[Any]


def _due(condition: ColumnElement[bool], order: ColumnElement[datetime], end: Any) -> _Due:
    """Return queries that read an index from its `end`: the smallest or the largest due time.

    The first host is not one of `without`. Its query reads a row of each host, however much is due there.
    """
    first = select(reconciliations).where(condition).order_by(order).limit(1)
    hosts = distinct_values(reconciliations.c.host, reconciliations.c.host.is_not(None), name="hosts")
    of_host = select(end(reconciliations.c.due_at)).where(reconciliations.c.host == hosts.c.host, condition)
    ends = select(hosts.c.host, of_host.correlate(hosts).scalar_subquery().label("due_at")).subquery()
    host = (
        select(ends.c.host)
        .where(ends.c.host.not_in(bindparam("without", expanding=True)), ends.c.due_at.is_not(None))
        .order_by(ends.c.due_at)
        .limit(1)
    )
    return _Due(first, host, first.where(reconciliations.c.host == bindparam("of_host")))


_due_at = reconciliations.c.due_at
# The other was postponed too far, by a wrong clock.
_DUE = (
    _due(_due_at <= NOW, _due_at, func.min),
    _due(_due_at > _FAR, _due_at.desc(), func.max),
)
_CONNECTION = select(connections.c.host, connections.c.deleted_at).where(
    connections.c.id == bindparam("its_id")
)
_DELETE_ORPHANS = delete(reconciliations).where(
    reconciliations.c.connection.in_(select(connections.c.id).where(connections.c.deleted_at.is_not(None)))
)


def is_due(
    conn: sqlalchemy.Connection, *, now: datetime, longest: timedelta = MAX_DELAY, per_host: int = 0
) -> bool:
    """Return whether a claim may find a reconciliation. It waits for no writer."""
    if _first_due(conn, (), now=now, longest=longest) is None:
        return False
    full = full_hosts(conn, per_host=per_host, now=now) if per_host else []
    return not full or _first_due(conn, full, now=now, longest=longest) is not None


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
    while (row := _first_due(conn, full, now=now, longest=longest, is_locking=True)) is not None:
        mine = reconciliations.c.connection == row.connection
        its = conn.execute(_CONNECTION, {"its_id": row.connection}).one()
        # A previous version of Pushgate, before or during an upgrade, sets no host and deletes no row.
        if its.deleted_at is not None:
            conn.execute(_DELETE_ORPHANS)
        elif row.host != its.host:
            conn.execute(update(reconciliations).where(mine).values(host=its.host))
        else:
            conn.execute(update(reconciliations).where(mine).values(due_at=until, held_until=until))
            is_first, seen = row.reconciled_at is None, row.seen or {}
            return from_row(Reconciliation, row, claimed_at=now, due_at=until, is_first=is_first, seen=seen)
    return None


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
    unknown: dict[str, Any] = {"reconciled_at": None, "seen": None, "agreed": 0}
    # What was found at the other remote says nothing about this one.
    unknown |= {"tried_at": None, "reason": None, "default_branch": None, "recovered": None}
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
    # Not all columns: `seen` may be as long as a repository's list of refs.
    names = ("connection", *(each.name for each in fields(ReconciliationState)))
    query = select(*(reconciliations.c[name] for name in names))
    rows = conn.execute(query.where(among(conn, reconciliations.c.connection, of)))
    return {row.connection: from_row(ReconciliationState, row) for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """A push whose webhook never arrived, recorded by `delivery` at `since`; no webhook has arrived later."""

    delivery: str
    since: datetime


def silences(conn: sqlalchemy.Connection, of: Sequence[str]) -> dict[str, Silence]:
    """Return the silence of each of these connections that is silent."""
    query = _silent(reconciliations.c.connection, deliveries.c.id, deliveries.c.received_at)
    rows = conn.execute(query.where(among(conn, reconciliations.c.connection, of)))
    return {row.connection: Silence(delivery=row.id, since=row.received_at) for row in rows}


def due_since(conn: sqlalchemy.Connection, *, now: datetime) -> datetime | None:
    """Return since when the reconciliation is due that has waited for longest; None if none is due."""
    since: datetime | None = conn.execute(select(least(_due_at, _due_at <= NOW)), {"now": now}).scalar()
    return since


def count_silent(conn: sqlalchemy.Connection) -> int:
    """Return how many connections are silent."""
    count: int = conn.execute(_silent(func.count())).scalar_one()
    return count


def silent(conn: sqlalchemy.Connection) -> list[str]:
    """Return the connections that are silent."""
    return list(conn.execute(_silent(reconciliations.c.connection)).scalars())


def _silent(*columns: Any) -> Select[Any]:
    """Select from the connections that are silent, with the deliveries of their recovered pushes.

    Ids of deliveries sort by time, so only the rows after the recovered push are read. For NOT EXISTS,
    PostgreSQL may read all deliveries.
    """
    later = deliveries.alias()
    arrived = (
        select(later.c.id)
        .where(
            later.c.connection == reconciliations.c.connection,
            later.c.id > reconciliations.c.recovered,
            later.c.source == "webhook",
        )
        .order_by(later.c.id)
        .limit(1)
        .scalar_subquery()
    )
    of_push = deliveries.c.id == reconciliations.c.recovered
    return select(*columns).select_from(reconciliations.join(deliveries, of_push)).where(arrived.is_(None))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How the reconciliations of all connections go.

    `oldest` is the end of the last successful one of the failing connection that has failed longest; None if
    none fails, or if none of those that fail ever succeeded. `due_at` is the earliest due time.
    """

    connections: int
    failing: int
    oldest: datetime | None
    newest: datetime | None
    due_at: datetime | None


_PROGRESS = select(
    func.count().label("connections"),
    func.count(reconciliations.c.reason).label("failing"),
    func.min(case((reconciliations.c.reason.is_not(None), reconciliations.c.reconciled_at))).label("oldest"),
    func.max(reconciliations.c.reconciled_at).label("newest"),
    func.min(reconciliations.c.due_at).label("due_at"),
)


def progress(conn: sqlalchemy.Connection) -> Progress:
    """Return how the reconciliations of all connections go. Reads one row for each connection."""
    return from_row(Progress, conn.execute(_PROGRESS).one())


def _first_due(
    conn: sqlalchemy.Connection,
    without: Sequence[str],
    *,
    now: datetime,
    longest: timedelta,
    is_locking: bool = False,
) -> Row[Any] | None:
    """Return the first due reconciliation, or one that a wrong clock has postponed too far.

    Leave out the hosts in `without`, and what others have locked if this is `is_locking`.
    """
    values: dict[str, Any] = {"now": now, "far": now + longest}
    for due in _DUE:
        query = due.first
        if without:
            query = due.of_host
            values["of_host"] = conn.execute(due.host, {**values, "without": without}).scalar()
        locking = query.with_for_update(skip_locked=True, of=reconciliations) if is_locking else query
        row = conn.execute(locking, values).one_or_none()
        if row is not None:
            return row
    return None


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
