"""The connections that have work now, in an index, so that a claim reads no others.

A lease is in one of three states:

- not waiting: nothing is pending, or a worker has the connection. `ready_at` is None.
- postponed: `ready_at` is when its ref updates have to be looked at again.
- queued: `queue_host` and `queue_project` are set, and with `due_at` they are the key of the queue.
  `ready_at` is since when the first ref update has been ready.

`refresh`, which precedes each claim, computes this state from the pending ref updates, and nothing else does.
It finds by an index what may have changed: leases whose `ready_at` has come, leases that have expired, and
ref updates that are new. Whatever changes a lease sets `ready_at`. Accepting a delivery does not, because it
must not wait for a worker's transaction on the lease: a new ref update is not `queued`. `forgotten`
finds what a previous version of Pushgate has changed, which sets neither.
"""

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    FromClause,
    ScalarSelect,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    union_all,
    update,
)

from gateway.store.columns import Instant
from gateway.store.database import Lock, lock
from gateway.store.tables import connections, deliveries, leases, ref_updates

MAX_DELAY = timedelta(minutes=15)
"""The longest delay before a retry, and the longest lease. A later time was set by a wrong clock."""

# A literal, not a bound value: only then can the query planner use the partial index of pending rows.
is_pending = ref_updates.c.state == literal_column("'pending'")
_is_new = and_(is_pending, literal_column("NOT ref_updates.queued"))

NOW: ColumnElement[datetime] = bindparam("now", type_=Instant)
HORIZON: ColumnElement[datetime] = bindparam("horizon", type_=Instant)

is_held = and_(leases.c.owner.is_not(None), leases.c.expires_at.between(NOW, HORIZON))
"""Whether a worker has the connection, at `times`."""

is_due = or_(leases.c.due_at <= NOW, leases.c.due_at > HORIZON)
"""Whether the connection may be tried now, at `times`."""

is_queued = leases.c.queue_host.is_not(None)

# How many connections, and how many ref updates, a claim moves into the queue before it goes on.
_MAX_CONNECTIONS = 200
_MAX_UPDATES = 1000

_postponed = ref_updates.alias("postponed")
_NAMED = leases.c.connection.in_(bindparam("names", expanding=True))


def times(now: datetime) -> dict[str, datetime]:
    """Return the values of `NOW` and `HORIZON`."""
    return {"now": now, "horizon": now + MAX_DELAY}


def _held_back(connection: ColumnElement[str] | str) -> list[ColumnElement[bool]]:
    return [
        _postponed.c.state == literal_column("'pending'"),
        _postponed.c.due_at.is_not(None),
        _postponed.c.connection == connection,
        _postponed.c.due_at.between(NOW, HORIZON),
    ]


def is_ready(connection: ColumnElement[str] | str) -> ColumnElement[bool]:
    """Return the condition that a pending ref update of a connection may be worked on, at `times`.

    A postponed update holds back the later updates of its own ref, and no others.
    """
    # Otherwise it would hold back the refs of this name in all connections.
    held_back = select(_postponed.c.ref).where(*_held_back(connection)).correlate_except(_postponed)
    return ref_updates.c.ref.not_in(held_back)


def _state() -> FromClause:
    """Return of each named lease its first ready ref update, if any, and since when that has been ready.

    Materialized: PostgreSQL would compute a column again for each place that it is used in.
    """
    first = (
        select(ref_updates.c.seq)
        .where(is_pending, ref_updates.c.connection == leases.c.connection)
        .where(is_ready(leases.c.connection))
        .order_by(ref_updates.c.seq)
        .limit(1)
        .correlate(leases)
        .scalar_subquery()
    )
    next_try = select(func.min(_postponed.c.due_at)).where(*_held_back(leases.c.connection))
    named = (
        select(
            leases.c.connection,
            first.label("seq"),
            next_try.correlate(leases).scalar_subquery().label("next_try"),
        )
        .where(_NAMED)
        .subquery("named")
    )
    return (
        select(named, connections.c.host, connections.c.project)
        .add_columns(func.coalesce(ref_updates.c.due_at, deliveries.c.received_at).label("since"))
        .join(connections, connections.c.id == named.c.connection)
        .outerjoin(ref_updates, ref_updates.c.seq == named.c.seq)
        .outerjoin(deliveries, deliveries.c.id == ref_updates.c.delivery)
        .cte("state")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )


def _queue_update() -> sqlalchemy.Update:
    state = _state()
    may_start = and_(not_(is_held), state.c.seq.is_not(None), is_due)
    ready_at = case(
        (is_held, null()),
        (may_start, state.c.since),
        (state.c.seq.is_not(None), leases.c.due_at),
        else_=state.c.next_try,
    )
    return (
        update(leases)
        .where(leases.c.connection == state.c.connection)
        .values(
            owner=case((is_held, leases.c.owner)),
            expires_at=case((is_held, leases.c.expires_at)),
            ready_at=ready_at,
            queue_host=case((may_start, state.c.host)),
            queue_project=case((may_start, state.c.project)),
        )
    )


_UPDATE = _queue_update()


def least(column: Column[Any], condition: ColumnElement[bool]) -> ScalarSelect[Any]:
    """Return the least value of an index. For `min`, PostgreSQL may read all rows, if it expects few."""
    first = select(column).where(condition).order_by(column).limit(1)
    return first.correlate_except(column.table).scalar_subquery()


def distinct_values(column: Column[Any], condition: ColumnElement[bool], *, name: str) -> CTE:
    """Return the distinct values of the first column of an index, in a column of its name.

    `condition` is that of the index. The cost is one index lookup for each value, however many rows have it:
    a storm of pushes to a connection costs no more than a push.
    """
    found = select(least(column, condition).label(column.name)).cte(name, recursive=True)
    previous = found.c[column.name]
    following = least(column, and_(condition, column > previous))
    return found.union_all(select(following).where(previous.is_not(None)))


def waiting() -> CTE:
    """Return the connections that have pending ref updates, in a column `connection`."""
    return distinct_values(ref_updates.c.connection, is_pending, name="waiting")


def oldest_arrival(of: FromClause) -> ScalarSelect[datetime]:
    """Return when the oldest pending ref update of the connection in `of` was received."""
    first = (
        select(ref_updates.c.delivery)
        .where(is_pending, ref_updates.c.connection == of.c.connection)
        .order_by(ref_updates.c.seq)
        .limit(1)
        .correlate(of)
        .scalar_subquery()
    )
    return select(deliveries.c.received_at).where(deliveries.c.id == first).scalar_subquery()


_is_postponed = and_(leases.c.ready_at.is_not(None), leases.c.queue_host.is_(None))
_owned = leases.c.owner.is_not(None)
_is_expired = and_(_owned, leases.c.expires_at < NOW)
# Each is a range of an index. A time beyond the horizon was set by a wrong clock, and counts as past.
_DUE_LEASES = (
    (leases.c.ready_at, and_(_is_postponed, leases.c.ready_at <= NOW)),
    (leases.c.ready_at, and_(_is_postponed, leases.c.ready_at > HORIZON)),
    (leases.c.expires_at, _is_expired),
    (leases.c.expires_at, and_(_owned, leases.c.expires_at > HORIZON)),
)
# The least ones, not any: for those PostgreSQL would read the whole table if it expected to find many.
_HAS_CHANGED = select(
    or_(
        least(ref_updates.c.connection, _is_new).is_not(None),
        *(least(column, is_past).is_not(None) for column, is_past in _DUE_LEASES),
    )
)


def _changed() -> Select[Any]:
    new = distinct_values(ref_updates.c.connection, _is_new, name="new")
    parts = [select(new.c.connection).where(new.c.connection.is_not(None)).limit(_MAX_CONNECTIONS)]
    for column, is_past in _DUE_LEASES:
        parts.append(select(leases.c.connection).where(is_past).order_by(column).limit(_MAX_CONNECTIONS))
    # SQLite takes a limit in a part of a union only in a query of its own.
    return select(union_all(*(select(part.subquery()) for part in parts)).subquery())


_CHANGED = (
    select(leases.c.connection, _is_expired.label("is_expired"))
    .where(leases.c.connection.in_(_changed()))
    .with_for_update(skip_locked=True)
)
_TAKE_NOTE = (
    update(ref_updates)
    .where(
        ref_updates.c.seq.in_(
            select(ref_updates.c.seq)
            .where(_is_new, ref_updates.c.connection.in_(bindparam("names", expanding=True)))
            .limit(_MAX_UPDATES)
        )
    )
    .values(queued=True)
)


def has_changed(conn: sqlalchemy.Connection, *, now: datetime) -> bool:
    """Return whether `refresh` has something to do."""
    return bool(conn.execute(_HAS_CHANGED, times(now)).scalar())


def refresh(conn: sqlalchemy.Connection, *, now: datetime) -> int:
    """Update the queue for what was accepted, has become due or has expired; return how many have expired.

    Wait for others who do the same, because what they put into the queue is visible only then, but not for
    workers: their releases are found later.
    """
    if not has_changed(conn, now=now):
        return 0
    lock(conn, Lock.QUEUE)
    changed = conn.execute(_CHANGED, times(now)).all()
    names = [row.connection for row in changed]
    if not names:
        return 0
    # In this order: an update that is committed between the statements must not be noted before it is seen.
    conn.execute(_TAKE_NOTE, {"names": names})
    conn.execute(_UPDATE, {**times(now), "names": names})
    return sum(bool(row.is_expired) for row in changed)


def recheck(conn: sqlalchemy.Connection, *names: str, now: datetime) -> None:
    """Let the next `refresh` look at connections, unless they are worked on: then their release does."""
    changed = {"ready_at": now, "queue_host": None, "queue_project": None}
    conn.execute(update(leases).where(leases.c.connection.in_(names), not_(_owned)).values(changed))


STATES = ("waiting", "held", "postponed")
"""The states of a connection that has work, besides that of one whose first ref update is new."""

_COUNTS = select(
    *(
        select(func.count()).select_from(leases).where(condition).scalar_subquery().label(state)
        for state, condition in zip(STATES, (is_queued, is_held, _is_postponed), strict=True)
    )
)


def count_states(conn: sqlalchemy.Connection, *, now: datetime) -> dict[str, int]:
    """Count the connections in each of `STATES`. The cost depends on them alone: each has an index."""
    return dict(conn.execute(_COUNTS, times(now)).mappings().one())


def _forgotten() -> Select[Any]:
    waits = waiting()
    return (
        select(leases.c.connection)
        .join_from(waits, leases, leases.c.connection == waits.c.connection)
        .where(leases.c.ready_at.is_(None), leases.c.owner.is_(None))
        .limit(_MAX_CONNECTIONS)
    )


_FORGOTTEN = _forgotten()


def forgotten(conn: sqlalchemy.Connection) -> list[str]:
    """Return connections that have work and neither a worker nor a place in the queue, which need `recheck`.

    A previous version of Pushgate, beside this one or before it, leaves such connections. The cost is that of
    all waiting connections.
    """
    return list(conn.execute(_FORGOTTEN).scalars())
