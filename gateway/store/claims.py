"""Sharing the work out: which process works on which connection, and who comes next.

- A connection stays with the process that worked on it last, and so has its mirror, while that process lives.
  What has waited for a busy one for `PATIENCE` is anybody's.
- Projects take turns, and within a project its connections: who has the fewest workers now comes first, then
  who was served longest ago. A storm in one of them does not hold up the others.
- At most so many connections of a project, and of a git host, are worked on at once, over all processes.

Leases carry all of this, so it holds as well when a process dies: its leases count until they expire.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    ScalarSelect,
    Select,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy import Connection as Transaction

from gateway.store.bulk import upsert_rows
from gateway.store.database import Lock
from gateway.store.tables import connections, deliveries, leases, processes, ref_updates, turns

PATIENCE = timedelta(seconds=10)
"""So long work waits for the process that has its mirror."""

GONE_AFTER = timedelta(seconds=15)
"""A process that was not heard of for so long is gone; it tells three times as often (`gateway.presence`)."""

# Nobody looks at what was gone so long ago.
_FORGET_AFTER = timedelta(days=1)

# Written out, not bound: only so does a planner know that the index of pending ones will do.
is_pending = ref_updates.c.state == literal_column("'pending'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The claims of one process, by its name. Of a project and of a host so many at once; 0 is no limit."""

    process: str
    per_project: int = 0
    per_host: int = 0

    def claim(self, transaction: Transaction, *, owner: str, now: datetime, until: datetime) -> str | None:
        """Take the lease on the connection that comes next; None where none does."""
        if transaction.dialect.name != "sqlite":
            # One at a time, as SQLite has it anyway: what is counted here is to be true still at the end.
            transaction.execute(select(func.pg_advisory_xact_lock(Lock.CLAIM.value)))
        query = self._next(now).with_for_update(of=leases, skip_locked=True)
        found = transaction.execute(query).one_or_none()
        if found is None:
            return None
        connection, project = found
        transaction.execute(
            update(leases)
            .where(leases.c.connection == connection)
            .values(owner=owner, expires_at=until, process=self.process)
        )
        upsert_rows(transaction, turns, ("project",), [(project, now)])
        return str(connection)

    def next(self, transaction: Transaction, *, now: datetime) -> str | None:
        """Return the connection that a claim would take now."""
        found: str | None = transaction.execute(self._next(now)).scalar()
        return found

    def _next(self, now: datetime) -> Select[Any]:
        waits = waiting()
        held = (
            select(connections.c.project, connections.c.host)
            .join_from(leases, connections)
            .where(leases.c.owner.is_not(None), leases.c.expires_at >= now)
            .cte("held")
        )
        of_project, of_host = (
            select(func.count())
            .select_from(held)
            .where(held.c[name] == connections.c[name])
            .correlate(connections)
            .scalar_subquery()
            for name in ("project", "host")
        )
        query = (
            select(leases.c.connection, connections.c.project)
            .join_from(waits, leases, leases.c.connection == waits.c.connection)
            .join(connections, connections.c.id == leases.c.connection)
            .outerjoin(turns, turns.c.project == connections.c.project)
            .where(leases.c.due_at <= now, or_(leases.c.owner.is_(None), leases.c.expires_at < now))
            .where(self._may_have(now))
            .order_by(of_project, turns.c.claimed_at.nulls_first(), leases.c.due_at)
            .limit(1)
        )
        if self.per_project:
            query = query.where(of_project < self.per_project)
        if self.per_host:
            query = query.where(of_host < self.per_host)
        return query

    def _may_have(self, now: datetime) -> ColumnElement[bool]:
        """Leave a connection to another process that lives and has its mirror, unless that is too busy."""
        others = select(processes.c.name).where(
            processes.c.name != self.process, processes.c.seen_at > now - GONE_AFTER
        )
        return or_(
            leases.c.process.is_(None),
            leases.c.process.not_in(others),
            (leases.c.due_at <= now - PATIENCE) & (oldest_arrival(leases) <= now - PATIENCE),
        )


def alive(transaction: Transaction, *, now: datetime) -> list[str]:
    """Return the names of the worker processes that live, as far as they were heard of."""
    heard = select(processes.c.name).where(processes.c.seen_at > now - GONE_AFTER).order_by(processes.c.name)
    return list(transaction.execute(heard).scalars())


def waiting() -> CTE:
    """Return the connections that have pending ref updates, in a column `connection`.

    One look into the index for each of them, however many updates it has: a storm costs no more than a push.
    """
    first = select(func.min(ref_updates.c.connection).label("connection")).where(is_pending)
    found = first.cte("waiting", recursive=True)
    following = (
        select(func.min(ref_updates.c.connection))
        .where(is_pending, ref_updates.c.connection > found.c.connection)
        .correlate(found)
        .scalar_subquery()
    )
    return found.union_all(select(following).where(found.c.connection.is_not(None)))


def oldest_arrival(of: FromClause) -> ScalarSelect[datetime]:
    """Return when the longest waiting ref update of a connection was received; `of` is what names that."""
    first = (
        select(ref_updates.c.delivery)
        .where(is_pending, ref_updates.c.connection == of.c.connection)
        .order_by(ref_updates.c.seq)
        .limit(1)
        .correlate(of)
        .scalar_subquery()
    )
    return select(deliveries.c.received_at).where(deliveries.c.id == first).scalar_subquery()


def beat(transaction: Transaction, process: str, *, now: datetime) -> None:
    """Tell the other processes that this one lives."""
    upsert_rows(transaction, processes, ("name",), [(process, now)])
    transaction.execute(delete(processes).where(processes.c.seen_at < now - _FORGET_AFTER))


def leave(transaction: Transaction, process: str) -> None:
    """Tell the other processes that this one ends: its connections are anybody's from now on."""
    transaction.execute(delete(processes).where(processes.c.name == process))
