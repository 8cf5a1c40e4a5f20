"""Published requests that no runner has accepted yet, of projects whose runners report.

Whether runners report is known from the first report about any execution of the project. Requests that were
published before it are not expected to be accepted: runners that never report execute them all the same.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

import sqlalchemy
from sqlalchemy import bindparam, delete, exists, func, insert, select

from gateway.store.bulk_sql import among
from gateway.store.columns import Instant
from gateway.store.execution_tables import executions
from gateway.store.run_tables import reporting_projects, runs, unaccepted

NOTICED_AFTER = timedelta(minutes=15)
"""How long a request may wait for a runner before people are told."""

_HAS_RUN = exists().where(runs.c.execution == unaccepted.c.execution)

# Built once: building one takes longer than running it.
_EXPECT = insert(unaccepted).from_select(
    ["execution", "connection", "published_at", "lost_after"],
    select(
        executions.c.seq,
        executions.c.connection,
        bindparam("now", type_=Instant),
        executions.c.lost_after,
    ).where(
        executions.c.id.in_(bindparam("ids", expanding=True)),
        executions.c.project.in_(select(reporting_projects.c.project)),
        ~exists().where(runs.c.execution == executions.c.seq),
        ~exists().where(unaccepted.c.execution == executions.c.seq),
    ),
)
_REPORTING = select(reporting_projects.c.project).where(
    reporting_projects.c.project.in_(bindparam("projects", expanding=True))
)


def expect(conn: sqlalchemy.Connection, published: Sequence[str], *, now: datetime) -> None:
    """Expect runners to accept these requests, which were published, if those of their projects report.

    A request that is accepted at this moment may stay in the table, so readers look for its run.
    """
    conn.execute(_EXPECT, {"ids": published, "now": now})


def accept(
    conn: sqlalchemy.Connection, numbers: Sequence[int], projects: Collection[str], *, now: datetime
) -> None:
    """Record that runners have begun to report about executions, by their numbers and projects."""
    conn.execute(delete(unaccepted).where(among(conn, unaccepted.c.execution, numbers)))
    new = set(projects) - set(conn.execute(_REPORTING, {"projects": list(projects)}).scalars())
    if new:
        conn.execute(insert(reporting_projects), [{"project": name, "first_at": now} for name in sorted(new)])


def forget(conn: sqlalchemy.Connection, number: int) -> None:
    """Expect no runner to accept a request, by its number: it will be published again."""
    conn.execute(delete(unaccepted).where(unaccepted.c.execution == number))


def since(conn: sqlalchemy.Connection, numbers: Sequence[int]) -> dict[int, datetime]:
    """Return since when requests wait for a runner, by their numbers; only those that do."""
    query = select(unaccepted.c.execution, unaccepted.c.published_at)
    rows = conn.execute(query.where(unaccepted.c.execution.in_(numbers), ~_HAS_RUN))
    return {row.execution: row.published_at for row in rows}


def oldest(
    conn: sqlalchemy.Connection, connections: Sequence[str], *, before: datetime
) -> dict[str, datetime]:
    """Return since when the first of each connection's requests waits for a runner, if since `before`."""
    first = func.min(unaccepted.c.published_at)
    query = select(unaccepted.c.connection, first.label("since")).group_by(unaccepted.c.connection)
    its_own = among(conn, unaccepted.c.connection, connections), unaccepted.c.published_at <= before
    return {row.connection: row.since for row in conn.execute(query.where(*its_own, ~_HAS_RUN))}
