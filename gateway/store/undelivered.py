"""Execution requests that nobody could deliver, with their runs and without their bodies."""

from collections.abc import Sequence

import sqlalchemy
from sqlalchemy import select

from gateway.store import executions
from gateway.store.execution_tables import executions as table
from gateway.store.executions import StoredRequest


def named(conn: sqlalchemy.Connection, ids: Sequence[str]) -> dict[str, StoredRequest]:
    """Return the requests with these ids, by their ids."""
    numbers = conn.execute(select(table.c.seq).where(table.c.id.in_(ids))).scalars()
    return {stored.id: stored for stored in executions.numbered(conn, list(numbers))}


def undeliverable(conn: sqlalchemy.Connection, *, limit: int) -> list[StoredRequest]:
    """Return up to `limit` undeliverable requests, the oldest first."""
    query = select(table.c.seq).where(table.c.state == "undeliverable").order_by(table.c.seq).limit(limit)
    return executions.numbered(conn, list(conn.execute(query).scalars()))
