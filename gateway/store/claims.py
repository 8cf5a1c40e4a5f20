"""Sharing the work out: which process works on which connection, and who comes next.

- A connection stays with the process that worked on it last, and so has its mirror, while that process lives.
  What has waited for a busy one for `MIRROR_AFFINITY` is anybody's.
- Projects take turns, and within a project its connections: who has the fewest workers now comes first, then
  who was served longest ago. A storm in one of them does not hold up the others.
- At most so many connections of a project, and of a git host, are worked on at once, over all processes.
- Hosts that hang do not take up all places of a process: there is one more for a host that holds none, and
  another for such a host that answered when it was last asked. A host that timed out lately has one place
  until it answers.

Leases carry all of this, so it holds as well when a process dies: its leases count until they expire.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import (
    CTE,
    ColumnElement,
    FromClause,
    ScalarSelect,
    Select,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)

from gateway.store.bulk_sql import upsert_rows
from gateway.store.connections import host_of
from gateway.store.database import Lock
from gateway.store.tables import (
    connections,
    deliveries,
    leases,
    processes,
    reconciliations,
    ref_updates,
    turns,
)

MIRROR_AFFINITY = timedelta(seconds=10)
"""So long work waits for the process that has its mirror."""

GONE_AFTER = timedelta(seconds=15)
"""A process without a heartbeat for so long is gone; three are due in this time (`worker.heartbeat`)."""

MAX_LEASE_AHEAD = timedelta(minutes=20)
"""No lease and no delay of the worker reaches further ahead; what does was set by a clock that was wrong."""

# Nobody looks at what was gone so long ago.
_FORGET_AFTER = timedelta(days=1)

# Written out, not bound: only so does a planner know that the index of pending ones will do.
is_pending = ref_updates.c.state == literal_column("'pending'")


MAX_DELAY = timedelta(minutes=15)
"""What failed is tried again by then. A time beyond it is from a clock that was wrong, and does not count."""

# Longer than the longest pause between two tries.
_SILENT_FOR = timedelta(minutes=30)
# Hosts that are known to answer: each claim looks through them.
_MAX_ANSWERING = 1000

RESERVED = 2
"""Places beside the usual ones, for hosts that hold none: one for any, one for those that answer."""

_postponed = ref_updates.alias("postponed")


def is_ready(connection: ColumnElement[str] | str, *, now: datetime) -> ColumnElement[bool]:
    """Return the condition that a pending ref update of a connection may be worked on now.

    One that was put off holds back those of its own ref, which come after it, and no others.
    """
    held_back = (
        select(_postponed.c.ref)
        .where(
            _postponed.c.state == literal_column("'pending'"),
            _postponed.c.due_at.is_not(None),
            _postponed.c.connection == connection,
            _postponed.c.due_at.between(now, now + MAX_DELAY),
        )
        # Else it would be joined with all connections, and hold back refs of this name in each of them.
        .correlate_except(_postponed)
    )
    return ref_updates.c.ref.not_in(held_back)


class SilentHosts:
    """The git hosts that timed out lately, and those that did not, as one process knows them."""

    def __init__(self) -> None:
        """Begin with none."""
        self._since: dict[str, datetime] = {}
        # As keys, the one that was asked last comes last.
        self._answering: dict[str, None] = {}

    def note(self, url: str, *, answers: bool, now: datetime) -> None:
        """Take down whether the host of a URL has answered."""
        host = host_of(url)
        self._answering.pop(host, None)
        if answers:
            self._since.pop(host, None)
            self._answering[host] = None
            if len(self._answering) > _MAX_ANSWERING:
                del self._answering[next(iter(self._answering))]
        else:
            self._since[host] = now

    def lately(self, now: datetime) -> list[str]:
        """Return those that have not answered since; who is not asked any more is forgotten in time."""
        # A copy: notes are taken on the event loop, claims are made in threads.
        return sorted(host for host, since in list(self._since.items()) if since > now - _SILENT_FOR)

    def answering(self) -> list[str]:
        """Return those that answered when they were last asked; of very many, the ones that were last."""
        return sorted(self._answering)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The claims of one process, by its name. Of a project and of a host so many at once; 0 is no limit.

    With as many as `places` of its own, a process takes one more that is on a host where it does nothing
    yet, and beyond that only what is on such a host that answers.
    """

    process: str
    per_project: int = 0
    per_host: int = 0
    places: int = 0
    silent: SilentHosts = field(default_factory=SilentHosts)

    def claim(self, conn: sqlalchemy.Connection, *, owner: str, now: datetime, until: datetime) -> str | None:
        """Take the lease on the connection that comes next; None where none does."""
        if conn.dialect.name != "sqlite":
            # One at a time, as SQLite has it anyway: what is counted here is to be true still at the end.
            conn.execute(select(func.pg_advisory_xact_lock(Lock.CLAIM.value)))
        query = self._next(now).with_for_update(of=leases, skip_locked=True)
        found = conn.execute(query).one_or_none()
        if found is None:
            return None
        connection, project = found
        conn.execute(
            update(leases)
            .where(leases.c.connection == connection)
            .values(owner=owner, expires_at=until, process=self.process)
        )
        upsert_rows(conn, turns, ("project",), [(project, now)])
        return str(connection)

    def next(self, conn: sqlalchemy.Connection, *, now: datetime) -> str | None:
        """Return the connection that a claim would take now."""
        found: str | None = conn.execute(self._next(now)).scalar()
        return found

    def _next(self, now: datetime) -> Select[Any]:
        waits = waiting()
        held = _held(now).cte("held")
        of_project = (
            select(func.count())
            .select_from(held)
            .where(held.c.project == connections.c.project)
            .correlate(connections)
            .scalar_subquery()
        )
        mine = select(func.count()).select_from(held).where(held.c.process == self.process)
        holds_none = (
            mine.where(held.c.host == connections.c.host).correlate(connections).scalar_subquery() == 0
        )
        ready = (
            select(ref_updates.c.seq)
            .where(is_pending, ref_updates.c.connection == waits.c.connection)
            .where(is_ready(waits.c.connection, now=now))
            .correlate(waits)
        )
        query = (
            select(leases.c.connection, connections.c.project)
            .join_from(waits, leases, leases.c.connection == waits.c.connection)
            .join(connections, connections.c.id == leases.c.connection)
            .outerjoin(turns, turns.c.project == connections.c.project)
            .where(or_(leases.c.due_at <= now, leases.c.due_at > now + MAX_DELAY))
            .where(or_(leases.c.owner.is_(None), ~leases.c.expires_at.between(now, now + MAX_DELAY)))
            .where(self._may_have(now), ready.exists())
            .order_by(of_project, _last_turn(now).nulls_first(), leases.c.due_at)
            .limit(1)
        )
        if self.per_project:
            query = query.where(of_project < self.per_project)
        if self.per_host:
            query = query.where(held_of_host(now) < self.per_host)
        if self.places:
            held_now = mine.scalar_subquery()
            is_first = holds_none & or_(
                held_now == self.places, connections.c.host.in_(self.silent.answering())
            )
            query = query.where(or_(held_now < self.places, is_first))
        silent = self.silent.lately(now)
        if silent:
            query = query.where(or_(connections.c.host.not_in(silent), holds_none))
        return query

    def _may_have(self, now: datetime) -> ColumnElement[bool]:
        """Leave a connection to another process that lives and has its mirror, unless that is too busy."""
        others = select(processes.c.name).where(
            processes.c.name != self.process,
            processes.c.seen_at > now - GONE_AFTER,
            processes.c.seen_at < now + MAX_LEASE_AHEAD,
        )
        return or_(
            leases.c.process.is_(None),
            leases.c.process.not_in(others),
            (leases.c.due_at <= now - MIRROR_AFFINITY) & (_ready_since(now) <= now - MIRROR_AFFINITY),
        )


def alive(conn: sqlalchemy.Connection, *, now: datetime) -> list[str]:
    """Return the names of the worker processes that live, as far as they were heard of."""
    heard = select(processes.c.name).where(processes.c.seen_at > now - GONE_AFTER).order_by(processes.c.name)
    return list(conn.execute(heard).scalars())


def held_of_host(now: datetime) -> ColumnElement[int]:
    """Return how many fetches and reconciliations are running at the selected connection's host."""
    fetches = _held(now).cte("fetches")
    others = connections.alias("reconciled")
    looks = (
        select(others.c.host)
        .join_from(reconciliations, others)
        .where(reconciliations.c.held_until >= now, reconciliations.c.held_until < now + MAX_LEASE_AHEAD)
        .where(others.c.deleted_at.is_(None))
        .cte("looks")
    )
    of_host = (
        select(func.count())
        .select_from(held)
        .where(held.c.host == connections.c.host)
        .correlate(connections)
        .scalar_subquery()
        for held in (fetches, looks)
    )
    return next(of_host) + next(of_host)


def _held(now: datetime) -> Select[Any]:
    """Return the project and the host of each connection that is worked on."""
    others = connections.alias("worked_on")
    return (
        select(others.c.project, others.c.host, leases.c.process)
        .join_from(leases, others)
        .where(leases.c.owner.is_not(None), leases.c.expires_at.between(now, now + MAX_DELAY))
    )


def _last_turn(now: datetime) -> ColumnElement[datetime | None]:
    """Return when a project had its turn; one in the future is none."""
    return case((turns.c.claimed_at <= now, turns.c.claimed_at), else_=None)


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


def _ready_since(now: datetime) -> ScalarSelect[datetime]:
    """Return since when the first ref update of a lease's connection that may be worked on waits for that."""
    first = (
        select(ref_updates.c.seq)
        .where(is_pending, ref_updates.c.connection == leases.c.connection)
        .where(is_ready(leases.c.connection, now=now))
        .order_by(ref_updates.c.seq)
        .limit(1)
        .correlate(leases)
        .scalar_subquery()
    )
    since = func.coalesce(ref_updates.c.due_at, deliveries.c.received_at)
    return (
        select(since).join_from(ref_updates, deliveries).where(ref_updates.c.seq == first).scalar_subquery()
    )


def beat(conn: sqlalchemy.Connection, process: str, *, now: datetime) -> None:
    """Tell the other processes that this one lives."""
    upsert_rows(conn, processes, ("name",), [(process, now)])
    conn.execute(delete(processes).where(processes.c.seen_at < now - _FORGET_AFTER))


def leave(conn: sqlalchemy.Connection, process: str) -> None:
    """Tell the other processes that this one ends: its connections are anybody's from now on."""
    conn.execute(delete(processes).where(processes.c.name == process))
