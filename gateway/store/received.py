"""Read the webhook requests of deliveries as they were received."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import func, select

from gateway.errors import NotFound
from gateway.store import deliveries as stored
from gateway.store.rows import from_row
from gateway.store.tables import connections, deliveries, secrets

_ANSWER = ("status", "verdict", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRequest:
    """The stored request of a delivery.

    `hook` is the id of the connection or source whose webhook received it, `client` the address of the client
    if it is known. `headers` are those that the provider documents, with lower-case names, and never one with
    a signature or a token: of these, `withheld` has the lengths. `body` is the raw body, byte for byte.
    `answer` has the `status`, the `verdict` and the `reason` of the answer; None if an earlier version gave
    it.
    """

    delivery: str
    hook: str
    provider: str
    received_at: datetime
    client: str | None
    headers: Mapping[str, str]
    withheld: Mapping[str, int]
    body: bytes
    answer: Mapping[str, Any] | None


def get(conn: sqlalchemy.Connection, delivery_id: str) -> ReceivedRequest:
    """Return the request of a delivery. Raise `NotFound`, also for a push that reconciliation found."""
    hook = func.coalesce(secrets.c.connection, deliveries.c.connection)
    columns = (
        deliveries.c.id.label("delivery"),
        deliveries.c.source,
        deliveries.c.received_at,
        deliveries.c.headers,
        deliveries.c.exchange,
        connections.c.provider,
        hook.label("hook"),
    )
    joined = deliveries.join(connections).outerjoin(secrets, secrets.c.id == deliveries.c.secret)
    query = select(*columns).select_from(joined)
    row = conn.execute(query.where(deliveries.c.id == delivery_id)).one_or_none()
    if row is None:
        raise NotFound(f"no delivery has the id {delivery_id}")
    if row.source != "webhook":
        raise NotFound(f"delivery {delivery_id} has no request: reconciliation found the push at the remote")
    exchange = row.exchange or {}
    return from_row(
        ReceivedRequest,
        row,
        hook=exchange.get("hook", row.hook),
        client=exchange.get("client"),
        withheld=exchange.get("withheld", {}),
        body=stored.body(conn, delivery_id),
        answer={name: exchange[name] for name in _ANSWER} if exchange else None,
    )
