"""Silence: executions about which nothing was reported for so long that they count as lost.

That is a conclusion, not an end: a later report is believed. The limit is the trigger's or the setting's. It
counts from the last report, and from the publication of a request that no runner has accepted.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, Row, Select, Table, delete, exists, func, literal_column, select, true

from gateway.messages.execution_states import Run, silenced
from gateway.store import runs
from gateway.store.database import Lock, lock
from gateway.store.execution_tables import executions
from gateway.store.rows import from_row
from gateway.store.run_tables import runs as run_table
from gateway.store.run_tables import unaccepted

MAX_AT_ONCE = 500

# Literals, not bound values: only then can the query planner use the partial index.
_IS_ACTIVE = run_table.c.state.in_([literal_column("'accepted'"), literal_column("'running'")])


def is_due(conn: sqlalchemy.Connection, *, limit: timedelta | None, now: datetime) -> bool:
    """Return whether an execution has been silent for too long. It waits for no writer."""
    due = (*_silent(conn, limit=limit, now=now), *_unaccepted(conn, limit=limit, now=now))
    return any(conn.execute(query.limit(1)).first() is not None for query in due)


def end(conn: sqlalchemy.Connection, *, limit: timedelta | None, now: datetime) -> Sequence[str]:
    """Give up some executions that have been silent for too long; return the ids of those.

    `limit` is the setting's, None if it has none. Call it again until there are none.
    """
    lock(conn, Lock.RUNS)
    found = [row for query in _silent(conn, limit=limit, now=now) for row in _some(conn, query)]
    lost = {row.execution: silenced(from_row(Run, row), now=now) for row in found}
    never = [row for query in _unaccepted(conn, limit=limit, now=now) for row in _some(conn, query)]
    conn.execute(delete(unaccepted).where(unaccepted.c.execution.in_([row.execution for row in never])))
    lost |= {row.execution: silenced(None, now=now) for row in never if not row.has_run}
    runs.write(conn, lost, {row.execution: row.lost_after for row in (*never, *found)})
    ids = select(executions.c.id).where(executions.c.seq.in_(lost))
    return conn.execute(ids.order_by(executions.c.seq)).scalars().all()


def _some(conn: sqlalchemy.Connection, query: Select[Any]) -> Sequence[Row[Any]]:
    return conn.execute(query.limit(MAX_AT_ONCE)).all()


def _silent(conn: sqlalchemy.Connection, *, limit: timedelta | None, now: datetime) -> Iterator[Select[Any]]:
    """Yield a query for the runs that are due, for each limit of silence that any of them has."""
    for of, before in _limits(conn, run_table, _IS_ACTIVE, limit=limit, now=now):
        yield select(run_table).where(_IS_ACTIVE, of, run_table.c.reported_at <= before)


def _unaccepted(
    conn: sqlalchemy.Connection, *, limit: timedelta | None, now: datetime
) -> Iterator[Select[Any]]:
    """Yield a query for the unaccepted requests that are due, for each limit that any of them has."""
    has_run = exists().where(run_table.c.execution == unaccepted.c.execution)
    for of, before in _limits(conn, unaccepted, true(), limit=limit, now=now):
        query = select(unaccepted, has_run.label("has_run"))
        yield query.where(of, unaccepted.c.published_at <= before)


def _limits(
    conn: sqlalchemy.Connection,
    table: Table,
    where: ColumnElement[bool],
    *,
    limit: timedelta | None,
    now: datetime,
) -> Iterator[tuple[ColumnElement[bool], datetime]]:
    """Yield the condition on the rows of each limit, and until when these must have been silent.

    There are as many limits as triggers have different ones, so each is found by a look into the index.
    """
    column = table.c.lost_after
    if limit is not None:
        yield column.is_(None), now - limit
    seconds: int | None = 0  # never
    while True:
        seconds = conn.execute(select(func.min(column)).where(where, column > seconds)).scalar()
        if seconds is None:
            return
        yield column == seconds, now - timedelta(seconds=seconds)
