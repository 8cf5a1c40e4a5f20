"""Read recorded deliveries and their ref updates. `gateway.store.accept` writes new ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy
import zstandard
from sqlalchemy import Row, Text, cast, func, select

from gateway.errors import NotFound
from gateway.store import delivery_search, outcomes
from gateway.store.bulk_sql import among
from gateway.store.delivery_search import DeliveryFilters
from gateway.store.outcomes import Outcome
from gateway.store.rows import from_row
from gateway.store.tables import (
    connections,
    deliveries,
    ref_updates,
    secrets,
    update_attempts,
    waiting_deliveries,
)
from providers.model import RefUpdate

Verdict = Literal["accepted", "duplicate", "ignored", "unreadable"]

UpdateState = Literal["pending", "planned", "gone", "failed", "duplicate"]
"""A ref update waits as `pending`; the other four states are final, and each has a reason."""

REPLAYABLE: Sequence[UpdateState] = ("planned", "gone", "failed")
"""The final states of new ref updates: a replay may end in another state."""

# How many of the newest ref updates are searched for a commit that a push lists: takes less than a second.
_SEARCHED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How a ref update had ended before the replay at `replayed_at`."""

    state: UpdateState
    reason: str | None
    settled_at: datetime | None
    verdicts: Sequence[Mapping[str, Any]]
    replayed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedUpdate:
    """A stored ref update and its settlement. `generation` is its place among the moves of its ref.

    `fetched_at` is when its commit was in the mirror. `attempts` are the settlements before each replay, the
    oldest first.
    """

    seq: int
    connection: str
    delivery: str
    update: RefUpdate
    generation: int
    state: UpdateState
    reason: str | None
    verdicts: Sequence[Mapping[str, Any]]
    fetched_at: datetime | None
    settled_at: datetime | None
    attempts: Sequence[Attempt]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedDelivery:
    """A stored delivery. `secret_made_at` identifies the secret that verified it, as long as that exists.

    `name` is the name of its connection; `is_orphan` is True if the connection was deleted. It may be a
    source, if `is_of_source`: the delivery is then about a repository without a connection, and `is_waiting`
    until the rules of the source have decided.
    """

    id: str
    connection: str
    name: str
    is_orphan: bool
    is_of_source: bool
    is_waiting: bool
    provider: str
    source: str
    event: str
    provider_delivery_id: str | None
    received_at: datetime
    verdict: Verdict
    outcome: Outcome
    reason: str | None
    pusher: str | None
    repository: Mapping[str, Any] | None
    detail: Mapping[str, Any] | None
    secret_made_at: datetime | None
    updates: tuple[RecordedUpdate, ...]


def get(conn: sqlalchemy.Connection, delivery_id: str) -> RecordedDelivery:
    """Return a delivery with its updates. Raise `NotFound`."""
    row = conn.execute(_listing().where(deliveries.c.id == delivery_id)).one_or_none()
    if row is None:
        raise NotFound(f"no delivery has the id {delivery_id}")
    return _recorded(conn, [row])[0]


def page(
    conn: sqlalchemy.Connection,
    *,
    connection: str | None,
    verdict: str | None,
    before: str | None,
    limit: int,
    commit: str | None = None,
) -> list[RecordedDelivery]:
    """Return up to `limit` deliveries, the newest first, that are older than the id `before`.

    `commit` is an object id, or its beginning, to which a ref was moved, directly or through a tag.
    """
    filters = DeliveryFilters(connection=connection, verdict=verdict, commit=commit)
    return search(conn, filters, before=before, limit=limit)[0]


def search(
    conn: sqlalchemy.Connection, filters: DeliveryFilters, *, before: str | None, limit: int
) -> tuple[list[RecordedDelivery], str | None]:
    """Return up to `limit` deliveries, the newest first, and the `before` of the next page.

    That is None for the last page. A page may have fewer than `limit` items although there is another.
    """
    ids, following = delivery_search.find(conn, filters, before=before, limit=limit)
    query = _listing().where(among(conn, deliveries.c.id, ids)).order_by(deliveries.c.id.desc())
    return _recorded(conn, conn.execute(query).all()), following


def arrivals(conn: sqlalchemy.Connection, of: Sequence[str]) -> dict[str, datetime]:
    """Return when the last webhook of each connection arrived, of those that have a stored one."""
    mine = deliveries.c.connection == connections.c.id, deliveries.c.source == "webhook"
    newest = select(deliveries.c.received_at).where(*mine).order_by(deliveries.c.id.desc()).limit(1)
    query = select(connections.c.id, newest.scalar_subquery()).where(among(conn, connections.c.id, of))
    return {row[0]: row[1] for row in conn.execute(query) if row[1] is not None}


def containing(conn: sqlalchemy.Connection, commit: str, *, limit: int) -> list[RecordedDelivery]:
    """Return up to `limit` deliveries of pushes that list a commit, the newest first.

    `commit` is an object id or its beginning. The lists of commits are not indexed, so only the newest
    ref updates are searched.
    """
    newest = select(func.max(ref_updates.c.seq)).scalar_subquery()
    listing = select(ref_updates.c.delivery).where(
        ref_updates.c.seq > newest - _SEARCHED, cast(ref_updates.c.commits, Text).like(f'%"{commit}%')
    )
    query = _listing().where(deliveries.c.id.in_(listing)).order_by(deliveries.c.id.desc()).limit(limit)
    return _recorded(conn, conn.execute(query).all())


def body(conn: sqlalchemy.Connection, delivery_id: str) -> bytes:
    """Return the raw body of a delivery, byte for byte as received. Raise `NotFound`."""
    packed = conn.execute(select(deliveries.c.body).where(deliveries.c.id == delivery_id)).scalar()
    if packed is None:
        raise NotFound(f"no delivery has the id {delivery_id}")
    return zstandard.decompress(packed)


def _recorded_update(row: Row[Any], attempts: Sequence[Attempt]) -> RecordedUpdate:
    """Return the ref update in a row of `ref_updates`."""
    update = from_row(RefUpdate, row, commits=tuple(row.commits))
    return from_row(RecordedUpdate, row, update=update, verdicts=row.verdicts or (), attempts=attempts)


def _listing() -> Any:
    columns = [
        column for column in deliveries.c if column.name not in {"body", "headers", "secret", "exchange"}
    ]
    made_at = secrets.c.created_at.label("secret_made_at")
    source = deliveries.join(connections).outerjoin(secrets, secrets.c.id == deliveries.c.secret)
    whose = connections.c.provider, connections.c.name, connections.c.kind, connections.c.deleted_at
    waiting = select(waiting_deliveries.c.delivery).where(waiting_deliveries.c.delivery == deliveries.c.id)
    return select(*columns, *whose, made_at, waiting.exists().label("is_waiting")).select_from(source)


def _recorded(conn: sqlalchemy.Connection, rows: Sequence[Row[Any]]) -> list[RecordedDelivery]:
    moves: dict[str, list[RecordedUpdate]] = {row.id: [] for row in rows}
    shown = [column for column in ref_updates.c if column.name != "facts"]
    query = select(*shown).where(ref_updates.c.delivery.in_(list(moves))).order_by(ref_updates.c.seq)
    attempts = _attempts(conn, list(moves))
    # A previous version of Pushgate stores none.
    missing = outcomes.of_stored(conn, [row.id for row in rows if row.outcome is None])
    for row in conn.execute(query):
        moves[row.delivery].append(_recorded_update(row, attempts.get(row.seq, ())))
    return [
        from_row(
            RecordedDelivery,
            row,
            is_orphan=row.deleted_at is not None,
            is_of_source=row.kind == "source",
            outcome=row.outcome or missing[row.id],
            updates=tuple(moves[row.id]),
        )
        for row in rows
    ]


def _attempts(conn: sqlalchemy.Connection, delivery_ids: Sequence[str]) -> dict[int, list[Attempt]]:
    """Return the earlier settlements of the ref updates of these deliveries, by the ref update's number."""
    query = (
        select(update_attempts)
        .join(ref_updates, ref_updates.c.seq == update_attempts.c.ref_update)
        .where(ref_updates.c.delivery.in_(delivery_ids))
        .order_by(update_attempts.c.ref_update, update_attempts.c.number)
    )
    found: dict[int, list[Attempt]] = {}
    for row in conn.execute(query):
        attempt = from_row(Attempt, row, verdicts=row.verdicts or ())
        found.setdefault(row.ref_update, []).append(attempt)
    return found
