"""Find execution requests by what is stored of their deliveries: see gateway/store/delivery_search.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

import sqlalchemy
from sqlalchemy import Column, ColumnElement, Select, func, select, true

from gateway.messages.execution_states import ExecutionState, RunState
from gateway.store import delivery_search, runs
from gateway.store.bulk_sql import among
from gateway.store.delivery_search import MAX_EXAMINED, DeliveryFilters
from gateway.store.execution_tables import executions
from gateway.store.run_tables import runs as run_table
from gateway.store.tables import deliveries, ref_updates

# Of so few deliveries all requests are read, and otherwise the newest requests are examined.
_FEW = 200
_BATCH = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionFilters:
    """What a list of execution requests is restricted to; None for no restriction.

    `connection` and `delivery` are ids; `since` and `until` say when it was planned. The others are those of
    deliveries, but of the ref update of the request.
    """

    connection: str | None = None
    delivery: str | None = None
    state: ExecutionState | None = None
    branch: str | None = None
    author: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    search: str | None = None


def find(
    conn: sqlalchemy.Connection, filters: ExecutionFilters, *, before: int | None, limit: int
) -> tuple[list[int], int | None]:
    """Return the numbers of up to `limit` requests below `before`, and the `before` of the next page.

    That is None for the last page.
    """
    conditions, rest = _of_requests(filters), _of_updates(conn, filters)
    if filters.since is not None:
        conditions.append(executions.c.seq >= _first_planned(conn, filters.since))
    if filters.until is not None:
        conditions.append(executions.c.seq < _first_planned(conn, filters.until))
    if rest is not None and (few := _few_deliveries(conn, filters)) is not None:
        conditions.append(among(conn, executions.c.delivery, few))
    base, number = _in_state(filters.state)
    found: list[int] = []
    examined, size = 0, limit + 1 if rest is None else 4 * limit
    while True:
        window = true() if before is None else number < before
        query = base.where(*conditions, window).order_by(number.desc())
        numbers = conn.execute(query.limit(size)).scalars().all()
        found += numbers if rest is None else _matching(conn, numbers, rest)
        if len(found) > limit:
            return found[:limit], found[limit - 1]
        if len(numbers) < size:
            return found, None
        examined += size
        before, size = numbers[-1], min(2 * size, _BATCH)
        if examined >= MAX_EXAMINED:
            return found, before


def _of_requests(filters: ExecutionFilters) -> list[ColumnElement[bool]]:
    conditions = []
    if filters.connection is not None:
        conditions.append(executions.c.connection == filters.connection)
    if filters.delivery is not None:
        conditions.append(executions.c.delivery == filters.delivery)
    return conditions


def _in_state(state: ExecutionState | None) -> tuple[Select[Any], Column[Any]]:
    """Return a query for the requests in a state, and the column in whose order an index has them."""
    if state in get_args(RunState) and state != "cancelled":
        number = run_table.c.execution
        joined = run_table.join(executions, executions.c.seq == number)
        return select(number).select_from(joined).where(run_table.c.state == state), number
    query = select(executions.c.seq)
    return query if state is None else query.where(runs.is_shown_as(state)), executions.c.seq


def _of_updates(conn: sqlalchemy.Connection, filters: ExecutionFilters) -> ColumnElement[bool] | None:
    """Return the condition on the ref update and the delivery of a request; None if there is none."""
    found = delivery_search.conditions(
        conn, DeliveryFilters(branch=filters.branch, author=filters.author, search=filters.search)
    )
    if not found:
        return None
    its = ref_updates.c.seq == executions.c.ref_update, deliveries.c.id == executions.c.delivery
    # Not EXISTS, which PostgreSQL may turn into a join with all ref updates.
    first = select(ref_updates.c.seq).where(*its, *found).limit(1)
    return first.correlate(executions).scalar_subquery().is_not(None)


def _few_deliveries(conn: sqlalchemy.Connection, filters: ExecutionFilters) -> Sequence[str] | None:
    """Return the deliveries that the filters select, None if these are many."""
    wanted = DeliveryFilters(
        connection=filters.connection, branch=filters.branch, author=filters.author, search=filters.search
    )
    ids, following = delivery_search.find(conn, wanted, before=None, limit=_FEW)
    return ids if following is None else None


def _matching(
    conn: sqlalchemy.Connection, numbers: Sequence[int], condition: ColumnElement[bool]
) -> Sequence[int]:
    query = select(executions.c.seq).where(among(conn, executions.c.seq, numbers), condition)
    return conn.execute(query.order_by(executions.c.seq.desc())).scalars().all()


def _first_planned(conn: sqlalchemy.Connection, moment: datetime) -> int:
    """Return the number of the first request that was planned at a moment or later, by halves.

    Requests are numbered in the order in which they are planned, except those that a replay has revived.
    """
    low, high = 0, (conn.execute(select(func.max(executions.c.seq))).scalar() or 0) + 1
    while low < high:
        middle = (low + high) // 2
        query: Any = select(executions.c.seq, executions.c.planned_at).where(executions.c.seq >= middle)
        row = conn.execute(query.order_by(executions.c.seq).limit(1)).one_or_none()
        if row is not None and row.planned_at < moment:
            low = row.seq + 1
        else:
            high = middle
    return low
