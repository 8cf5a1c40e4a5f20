"""Past ref updates and the inputs of their plans, for dry runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import select

from gateway.store.deliveries import UpdateState
from gateway.store.ids import delivery_ids_since
from gateway.store.rows import from_row
from gateway.store.tables import deliveries, ref_updates
from gateway.store.work_queue import UPDATE_COLUMNS, PendingUpdate, pending_update


@dataclass(frozen=True, slots=True, kw_only=True)
class PastUpdate:
    """A ref update as the worker read it, and its settlement.

    `facts` are the inputs of its plan, as they were passed to `Settlement`; None if they were not stored. Its
    requests may be large: `executions.of_update` reads them for one ref update at a time.
    """

    update: PendingUpdate
    state: UpdateState
    reason: str | None
    verdicts: Sequence[Mapping[str, Any]]
    facts: bytes | None


def page(
    conn: sqlalchemy.Connection, connection: str, *, since: datetime | None, before: str | None, limit: int
) -> tuple[list[PastUpdate], str | None]:
    """Return the ref updates of up to `limit` accepted deliveries, the newest delivery first.

    Only deliveries since `since` and older than the delivery `before` count; duplicates are left out. Also
    return the id of the last delivery if there are older ones.
    """
    found = _accepted(conn, connection, since=since, before=before, limit=limit)
    shown = found[:limit]
    moves = (
        select(*[*UPDATE_COLUMNS, ref_updates.c.facts])
        .join(deliveries, deliveries.c.id == ref_updates.c.delivery)
        .where(ref_updates.c.delivery.in_(shown), ref_updates.c.state != "duplicate")
        .order_by(ref_updates.c.delivery.desc(), ref_updates.c.seq)
    )
    past = [
        from_row(PastUpdate, row, update=pending_update(row), verdicts=row.verdicts or ())
        for row in conn.execute(moves)
    ]
    return past, shown[-1] if len(found) > limit else None


def facts_of(conn: sqlalchemy.Connection, delivery: str, *, limit: int) -> dict[int, bytes]:
    """Return the inputs of the plans of a delivery's first ref updates, by the number of the ref update."""
    query = select(ref_updates.c.seq, ref_updates.c.facts).where(ref_updates.c.delivery == delivery)
    rows = conn.execute(query.order_by(ref_updates.c.seq).limit(limit))
    return {row.seq: row.facts for row in rows if row.facts is not None}


def _accepted(
    conn: sqlalchemy.Connection, connection: str, *, since: datetime | None, before: str | None, limit: int
) -> list[str]:
    """Return the ids of accepted deliveries, the newest first: one more than `limit` if there are more."""
    wanted = (
        select(deliveries.c.id)
        .where(deliveries.c.connection == connection, deliveries.c.verdict == "accepted")
        .order_by(deliveries.c.id.desc())
        .limit(limit + 1)
    )
    if since is not None:
        wanted = wanted.where(deliveries.c.id > delivery_ids_since(since))
    if before is not None:
        wanted = wanted.where(deliveries.c.id < before)
    return list(conn.execute(wanted).scalars())
