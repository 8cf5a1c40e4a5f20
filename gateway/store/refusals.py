"""Refused requests of the webhook endpoint: a bounded record for whoever looks why a webhook does not work.

A row counts the requests of one client that were refused on one day for one reason, so that a flood of them
stays one row. No body and no header is stored, except what the latest request names as its event and its id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

import sqlalchemy
from pydantic_core import to_json
from sqlalchemy import Row, Select, and_, delete, func, or_, select

from gateway.errors import NotFound
from gateway.store.bulk_sql import among, upsert_rows
from gateway.store.database import Lock, lock
from gateway.store.ids import delivery_id, delivery_ids_since
from gateway.store.rows import from_row
from gateway.store.tables import connections, refusals

VERDICT: Final = "refused"
"""What lists of deliveries show as the verdict of refused requests."""

MAX_ROWS = 50
"""How many rows each connection has, and how many all URLs have together that name no connection."""

# The connection that the URL names or named: it may be deleted, and may never have existed.
_NAMED = func.coalesce(refusals.c.connection, refusals.c.requested)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Refused requests of one client, for one reason.

    `connection` is the id in their URL, or None if the text there cannot be an id. `client` is None where the
    address is unknown. `cause` is the kind of reason, the same word as in the metrics. `event` and
    `provider_delivery_id` are what the headers of the latest request claim.
    """

    connection: str | None
    client: str | None
    status: int
    cause: str
    reason: str
    event: str
    provider_delivery_id: str | None
    first_at: datetime
    last_at: datetime
    count: int = 1

    @property
    def group(self) -> tuple[object, ...]:
        """What requests have in common that are counted together."""
        return self.connection, self.client, self.status, self.reason, self.first_at.toordinal()

    def together_with(self, other: "Refusal") -> "Refusal":
        """Return these requests and others of the same group as one refusal."""
        latest = max(self, other, key=lambda each: each.last_at)
        return replace(latest, first_at=min(self.first_at, other.first_at), count=self.count + other.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRefusal(Refusal):
    """A stored refusal, with what is known about the connection that the URL names.

    `name` and `provider` are None if it never existed; `is_orphan` is True then, and if it was deleted. It is
    a source if `is_of_source`.
    """

    id: str
    name: str | None
    provider: str | None
    is_orphan: bool
    is_of_source: bool


def record(conn: sqlalchemy.Connection, found: Sequence[Refusal]) -> None:
    """Add refusals, at most one of each group, and delete the oldest of connections that have too many."""
    # Two transactions would lock rows crosswise.
    lock(conn, Lock.REFUSALS)
    live = _live(conn, found)
    by_key = {_key(refusal): refusal for refusal in found}
    stored = {row.key: row for row in conn.execute(select(refusals).where(refusals.c.key.in_(by_key)))}
    rows = [_row(key, refusal, stored.get(key), live) for key, refusal in by_key.items()]
    upsert_rows(conn, refusals, ("key",), rows)
    age = func.row_number().over(partition_by=refusals.c.connection, order_by=refusals.c.last_at.desc())
    touched = or_(refusals.c.connection.in_(live), refusals.c.connection.is_(None))
    ranked = select(refusals.c.key, age.label("age")).where(touched).subquery()
    conn.execute(
        delete(refusals).where(refusals.c.key.in_(select(ranked.c.key).where(ranked.c.age > MAX_ROWS)))
    )


def page(
    conn: sqlalchemy.Connection,
    *,
    connection: str | None,
    before: str | None,
    limit: int,
    since: datetime | None = None,
) -> list[RecordedRefusal]:
    """Return up to `limit` refusals, the newest first, that are older than the id `before`.

    `connection` is the id of a connection, also of a deleted one.
    """
    query = _listing().order_by(refusals.c.id.desc()).limit(limit)
    if connection is not None:
        unknown = and_(refusals.c.connection.is_(None), refusals.c.requested == connection)
        query = query.where(or_(refusals.c.connection == connection, unknown))
    if before is not None:
        query = query.where(refusals.c.id < before)
    if since is not None:
        query = query.where(refusals.c.id >= delivery_ids_since(since))
    return [_recorded(row) for row in conn.execute(query)]


def newest(conn: sqlalchemy.Connection, of: Sequence[str], *, since: datetime) -> dict[str, Refusal]:
    """Return the refusal of each connection with the latest request, if there was one since then."""
    query = (
        select(refusals)
        .where(among(conn, refusals.c.connection, of), refusals.c.last_at >= since)
        .order_by(refusals.c.last_at)
    )
    return {row.connection: from_row(Refusal, row) for row in conn.execute(query)}


def get(conn: sqlalchemy.Connection, refusal_id: str) -> RecordedRefusal:
    """Return a refusal. Raise `NotFound`."""
    row = conn.execute(_listing().where(refusals.c.id == refusal_id)).one_or_none()
    if row is None:
        raise NotFound(f"no delivery has the id {refusal_id}")
    return _recorded(row)


def claiming(conn: sqlalchemy.Connection, provider_delivery_id: str) -> list[RecordedRefusal]:
    """Return the refusals whose latest request claims this id of the provider, the oldest first."""
    query = _listing().where(refusals.c.provider_delivery_id == provider_delivery_id)
    return [_recorded(row) for row in conn.execute(query.order_by(refusals.c.id))]


def forget(conn: sqlalchemy.Connection, *, before: datetime) -> None:
    """Delete what was last refused before a moment."""
    lock(conn, Lock.REFUSALS)
    conn.execute(delete(refusals).where(refusals.c.last_at < before))


def forget_connection(conn: sqlalchemy.Connection, connection_id: str) -> None:
    """Delete the refusals of a connection."""
    lock(conn, Lock.REFUSALS)
    conn.execute(delete(refusals).where(refusals.c.connection == connection_id))


def _live(conn: sqlalchemy.Connection, found: Sequence[Refusal]) -> set[str]:
    """Return the ids of the connections that exist."""
    named = {refusal.connection for refusal in found if refusal.connection is not None}
    query = select(connections.c.id).where(connections.c.id.in_(named), connections.c.deleted_at.is_(None))
    return set(conn.execute(query).scalars())


def _key(refusal: Refusal) -> str:
    """Return the group as text of a fixed length, which is unique although parts of a group may be None."""
    return sha256(to_json(refusal.group)).hexdigest()


def _row(key: str, refusal: Refusal, stored: Row[Any] | None, live: set[str]) -> tuple[Any, ...]:
    """Return the values of a row, in the order of the table's columns."""
    named = refusal.connection
    if stored is not None:
        refusal = refusal.together_with(from_row(Refusal, stored))
    return (
        key,
        delivery_id(refusal.first_at) if stored is None else stored.id,
        named if named in live else None,
        None if named in live else named,
        refusal.client,
        refusal.status,
        refusal.cause,
        refusal.reason,
        refusal.event,
        refusal.provider_delivery_id,
        refusal.first_at,
        refusal.last_at,
        refusal.count,
    )


def _listing() -> Select[Any]:
    columns = [column for column in refusals.c if column.name not in {"key", "connection", "requested"}]
    whose = connections.c.name, connections.c.provider, connections.c.kind, connections.c.deleted_at
    source = refusals.outerjoin(connections, connections.c.id == _NAMED)
    return select(*columns, _NAMED.label("connection"), *whose).select_from(source)


def _recorded(row: Row[Any]) -> RecordedRefusal:
    is_orphan = row.name is None or row.deleted_at is not None
    return from_row(RecordedRefusal, row, is_orphan=is_orphan, is_of_source=row.kind == "source")
