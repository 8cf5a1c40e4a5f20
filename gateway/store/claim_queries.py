"""The statements of a claim, built once: building one takes longer than running it.

The values of `NOW` and `HORIZON` are those of `gateway.store.ready_queue.times`; `alive_since` and `ahead`
are the times between which a heartbeat counts.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import (
    ColumnElement,
    Integer,
    Row,
    Select,
    and_,
    bindparam,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from gateway.store.columns import Instant
from gateway.store.ready_queue import NOW, distinct_values, is_due, is_held, is_queued, least
from gateway.store.tables import connections, leases, processes, reconciliations, turns

# The connections of a project that a claim reads at most: those that wait longest.
_MAX_OF_PROJECT = 256
_ALIVE_SINCE: ColumnElement[Any] = bindparam("alive_since", type_=Instant)
_AHEAD: ColumnElement[Any] = bindparam("ahead", type_=Instant)
_NAMED = leases.c.connection.in_(bindparam("names", expanding=True))
CLAIM_LOCK = select(
    func.pg_advisory_xact_lock(bindparam("key")), func.set_config("synchronous_commit", "off", true())
)


def _running() -> sqlalchemy.CompoundSelect[Any]:
    """Return what counts for limits and affinity.

    These are the project, host and process of each leased connection, the host of each reconciliation, and
    each live process.
    """
    fetches = select(connections.c.project, connections.c.host, leases.c.process).join_from(
        leases, connections, connections.c.id == leases.c.connection
    )
    looks = select(null(), connections.c.host, null()).join_from(
        reconciliations, connections, connections.c.id == reconciliations.c.connection
    )
    alive = select(null(), null(), processes.c.name)
    return union_all(
        fetches.where(is_held),
        looks.where(
            reconciliations.c.held_until >= NOW,
            reconciliations.c.held_until < _AHEAD,
            connections.c.deleted_at.is_(None),
        ),
        alive.where(processes.c.seen_at > _ALIVE_SINCE, processes.c.seen_at < _AHEAD),
    )


RUNNING = _running()


def _next_project(host: ColumnElement[Any], after: ColumnElement[Any]) -> ColumnElement[Any]:
    on_host = and_(is_queued, leases.c.queue_host == host, leases.c.queue_project > after)
    return least(leases.c.queue_project, on_host)


def _groups() -> Select[Any]:
    """Return the projects that have queued connections on each host, with an index lookup for each.

    `most` is the limit of all hosts together, of which each has an equal part. `is_last` is whether a project
    is the last of this part.
    """
    hosts = distinct_values(leases.c.queue_host, is_queued, name="hosts")
    count = select(func.count(hosts.c.queue_host)).scalar_subquery()
    first = select(
        hosts.c.queue_host.label("host"),
        _next_project(hosts.c.queue_host, bindparam("after")).label("project"),
        literal_column("1").label("number"),
        (bindparam("most", type_=Integer) // count).label("most"),
    ).where(hosts.c.queue_host.is_not(None))
    groups = first.cte("groups", recursive=True)
    following = select(
        groups.c.host,
        _next_project(groups.c.host, groups.c.project),
        groups.c.number + literal_column("1"),
        groups.c.most,
    )
    groups = groups.union_all(following.where(groups.c.project.is_not(None), groups.c.number < groups.c.most))
    return (
        select(groups.c.host, groups.c.project, turns.c.claimed_at)
        .add_columns((groups.c.number >= groups.c.most).label("is_last"))
        .outerjoin(turns, turns.c.project == groups.c.project)
        .where(groups.c.project.is_not(None))
    )


GROUPS = _groups()


def _of_group(host: ColumnElement[Any], project: ColumnElement[Any]) -> Select[Any]:
    """Return the connections of a project on a host that a process may take, those served longest ago first.

    Not a connection whose mirror another live process has, unless its work has waited for that process.
    """
    patient: ColumnElement[Any] = bindparam("patient", type_=Instant)
    first = (
        select(leases.c.connection, leases.c.due_at, leases.c.process, leases.c.ready_at)
        .add_columns(leases.c.owner, leases.c.expires_at)
        .where(is_queued, leases.c.queue_host == host, leases.c.queue_project == project)
        .order_by(leases.c.due_at)
        .limit(_MAX_OF_PROJECT)
        .correlate_except(leases)
        .subquery()
    )
    adapt = sqlalchemy.sql.util.ClauseAdapter(first)
    may_have = or_(
        leases.c.process.is_(None),
        leases.c.process.not_in(bindparam("others", expanding=True)),
        and_(leases.c.due_at <= patient, leases.c.ready_at <= patient),
    )
    free = adapt.traverse(and_(not_(is_held), is_due, may_have))
    return select(first.c.connection).where(free).order_by(first.c.due_at).limit(bindparam("most"))


_OF_GROUP = _of_group(bindparam("host"), bindparam("project"))


def _of_many_groups() -> Select[Any]:
    """Return the same for many groups at once. SQLite has no lateral joins."""
    texts = ARRAY(sqlalchemy.Text)
    arrays = bindparam("group_hosts", type_=texts), bindparam("group_projects", type_=texts)
    groups = func.unnest(*arrays).table_valued("host", "project", name="groups").render_derived()
    found = _of_group(groups.c.host, groups.c.project).lateral()
    return select(found.c.connection).select_from(groups.join(found, true()))


_OF_MANY_GROUPS = _of_many_groups()


def of_groups(conn: sqlalchemy.Connection, groups: Sequence[Row[Any]], values: dict[str, Any]) -> list[str]:
    """Return the queued connections of these hosts and projects that a process may take, by their groups."""
    if conn.dialect.name != "sqlite":
        named = {"group_hosts": [g.host for g in groups], "group_projects": [g.project for g in groups]}
        return list(conn.execute(_OF_MANY_GROUPS, {**values, **named}).scalars())
    each = ({**values, "host": group.host, "project": group.project} for group in groups)
    return [name for one in each for name in conn.execute(_OF_GROUP, one).scalars()]


# Without `is_queued`, for which PostgreSQL may read the index of the whole queue.
CANDIDATES = (
    select(leases.c.connection, leases.c.due_at)
    .add_columns(leases.c.queue_project.label("project"), leases.c.queue_host.label("host"))
    .add_columns(turns.c.claimed_at)
    .outerjoin(turns, turns.c.project == leases.c.queue_project)
    .where(_NAMED, is_due, not_(is_held))
)
_UNLOCKED = select(leases.c.connection).where(_NAMED, is_due).with_for_update(skip_locked=True)
TAKE = (
    update(leases)
    .where(leases.c.connection.in_(_UNLOCKED))
    .values(
        owner=bindparam("by"),
        expires_at=bindparam("until", type_=Instant),
        process=bindparam("of"),
        ready_at=None,
        queue_host=None,
        queue_project=None,
    )
    .returning(leases.c.connection)
)
