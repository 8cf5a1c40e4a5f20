"""Scheduling: which process works on which connection, and which connection comes next.

- A connection stays with the process that worked on it last, and so has its mirror, while that process lives.
  Work that has waited for a busy process for `MIRROR_AFFINITY` is open to all processes.
- Projects take turns, and so do the connections of a project: the project with the fewest workers comes
  first, then the one that was served longest ago. A storm in one project does not delay the others.
- The number of connections that are worked on at once is limited for each project and git host, across all
  processes.
- Hosts that hang do not occupy all places of a process: one place is reserved for a host that holds none, and
  another for such a host that answered its last fetch. A host that timed out recently has one place until it
  answers.

Leases carry this state, so it survives the death of a process: its leases count until they expire.
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
"""How long work is reserved for the process that holds its mirror."""

GONE_AFTER = timedelta(seconds=15)
"""A process without a heartbeat for this time is dead. Three are due in it: see `worker.heartbeat`."""

MAX_LEASE_AHEAD = timedelta(minutes=20)
"""No lease or delay reaches further ahead; a later time was set by a wrong clock."""

# Rows of processes that died longer ago are deleted.
_FORGET_AFTER = timedelta(days=1)

# A literal, not a bound value: only then can the query planner use the partial index of pending rows.
is_pending = ref_updates.c.state == literal_column("'pending'")


MAX_DELAY = timedelta(minutes=15)
"""The longest delay before a retry. A later time was set by a wrong clock, and does not count."""

# Longer than the longest delay between two tries.
_SILENT_FOR = timedelta(minutes=30)
# Limits the hosts that are known to answer: each claim compares with all of them.
_MAX_ANSWERING = 1000

RESERVED = 2
"""Extra places for hosts that hold none: one for any host, one for hosts that answer."""

_postponed = ref_updates.alias("postponed")

# Mostly nothing is pending, and building the query for the next connection takes milliseconds of each poll.
_ANY_PENDING = select(ref_updates.c.seq).where(is_pending).limit(1)


def is_ready(connection: ColumnElement[str] | str, *, now: datetime) -> ColumnElement[bool]:
    """Return the condition that a pending ref update of a connection may be worked on now.

    A postponed update holds back the later updates of its own ref, and no others.
    """
    held_back = (
        select(_postponed.c.ref)
        .where(
            _postponed.c.state == literal_column("'pending'"),
            _postponed.c.due_at.is_not(None),
            _postponed.c.connection == connection,
            _postponed.c.due_at.between(now, now + MAX_DELAY),
        )
        # Otherwise it would hold back the refs of this name in all connections.
        .correlate_except(_postponed)
    )
    return ref_updates.c.ref.not_in(held_back)


class SilentHosts:
    """The git hosts that timed out recently and those that answered, as observed by one process."""

    def __init__(self) -> None:
        """Begin with none."""
        self._since: dict[str, datetime] = {}
        # A dict for its order: the host of the latest fetch comes last.
        self._answering: dict[str, None] = {}

    def record(self, url: str, *, answers: bool, now: datetime) -> None:
        """Record whether the host of a URL answered."""
        host = host_of(url)
        self._answering.pop(host, None)
        if answers:
            self._since.pop(host, None)
            self._answering[host] = None
            if len(self._answering) > _MAX_ANSWERING:
                del self._answering[next(iter(self._answering))]
        else:
            self._since[host] = now

    def timed_out(self, now: datetime) -> list[str]:
        """Return the hosts that timed out recently and have not answered since."""
        # A copy: `record` runs on the event loop, claims run in threads.
        return sorted(host for host, since in list(self._since.items()) if since > now - _SILENT_FOR)

    def answering(self) -> list[str]:
        """Return the hosts that answered their last fetch, at most the latest `_MAX_ANSWERING`."""
        return sorted(self._answering)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The claims of one process, by its name. `per_project` and `per_host` are limits; 0 means no limit.

    Once a process holds `places` connections, it takes one more on a host where it holds none, and beyond
    that one on such a host that answers.
    """

    process: str
    per_project: int = 0
    per_host: int = 0
    places: int = 0
    silent: SilentHosts = field(default_factory=SilentHosts)

    def claim(self, conn: sqlalchemy.Connection, *, owner: str, now: datetime, until: datetime) -> str | None:
        """Take the lease on the next connection, and return its id; None if no connection is ready."""
        if conn.dialect.name != "sqlite":
            # One claim at a time, as on SQLite: the counts must still be true at the commit.
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
        if conn.execute(_ANY_PENDING).first() is None:
            return None
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
        return query.where(*self._has_place(held, now))

    def _has_place(self, held: CTE, now: datetime) -> list[ColumnElement[bool]]:
        """Return the conditions that this process has a place for a connection on its host."""
        mine = select(func.count()).select_from(held).where(held.c.process == self.process)
        holds_none = (
            mine.where(held.c.host == connections.c.host).correlate(connections).scalar_subquery() == 0
        )
        conditions: list[ColumnElement[bool]] = []
        if self.places:
            held_now = mine.scalar_subquery()
            is_first = holds_none & or_(
                held_now == self.places, connections.c.host.in_(self.silent.answering())
            )
            conditions.append(or_(held_now < self.places, is_first))
        silent = self.silent.timed_out(now)
        if silent:
            conditions.append(or_(connections.c.host.not_in(silent), holds_none))
        return conditions

    def _may_have(self, now: datetime) -> ColumnElement[bool]:
        """Return the condition that no other live process has the mirror, or the work has waited for it."""
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
    """Return the names of the live worker processes, by their heartbeats."""
    live = select(processes.c.name).where(processes.c.seen_at > now - GONE_AFTER).order_by(processes.c.name)
    return list(conn.execute(live).scalars())


def held_of_host(now: datetime) -> ColumnElement[int]:
    """Return how many fetches and reconciliations run on the host of the selected connection."""
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
    """Return the project, host and process of each leased connection."""
    others = connections.alias("worked_on")
    return (
        select(others.c.project, others.c.host, leases.c.process)
        .join_from(leases, others)
        .where(leases.c.owner.is_not(None), leases.c.expires_at.between(now, now + MAX_DELAY))
    )


def _last_turn(now: datetime) -> ColumnElement[datetime | None]:
    """Return when a project last had its turn; ignore a time in the future."""
    return case((turns.c.claimed_at <= now, turns.c.claimed_at), else_=None)


def waiting() -> CTE:
    """Return the connections that have pending ref updates, in a column `connection`.

    The cost is one index lookup for each connection, however many updates it has: a storm costs no more than
    a push.
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


def _ready_since(now: datetime) -> ScalarSelect[datetime]:
    """Return since when the first ready ref update of the lease's connection has been ready."""
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
    """Record a heartbeat of this process, and delete processes that died long ago."""
    upsert_rows(conn, processes, ("name",), [(process, now)])
    conn.execute(delete(processes).where(processes.c.seen_at < now - _FORGET_AFTER))


def leave(conn: sqlalchemy.Connection, process: str) -> None:
    """Record that this process ends, which opens its connections to all processes."""
    conn.execute(delete(processes).where(processes.c.name == process))
