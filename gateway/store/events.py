"""Events: what is told beside execution requests of how ref updates ended. This table is their outbox.

An event is written in the transaction that ends its ref update, and removed once the broker has it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy
from sqlalchemy import delete, insert, select, update

from gateway.store import outages
from gateway.store.database import Database, Lock
from gateway.store.outbox import TAKE_OVER_SECONDS
from gateway.store.tables import events


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event as it was made. `name` says which, such as push.fetched.

    `body` is the JSON of the wire contract, `subject` what the event is about, for people.
    """

    id: str
    connection: str
    delivery: str
    name: str
    project: str
    subject: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent(NewEvent):
    """An event that waits. `seq` is the order of telling, `reason` the broker's last refusal, if any."""

    seq: int
    settled_at: datetime
    reason: str | None = None


def add(conn: sqlalchemy.Connection, new: Sequence[NewEvent], *, now: datetime) -> None:
    """Put events into the outbox."""
    if new:
        conn.execute(insert(events), [{**asdict(one), "settled_at": now} for one in new])


def pending(conn: sqlalchemy.Connection, *, limit: int, without: Collection[str]) -> list[StoredEvent]:
    """Return events that the broker does not have yet, in order.

    Those of the connections in `without` are left out.
    """
    query = select(events).order_by(events.c.seq).limit(limit)
    if without:
        query = query.where(events.c.connection.not_in(without))
    return [StoredEvent(**row) for row in conn.execute(query).mappings()]


def record(
    conn: sqlalchemy.Connection,
    *,
    published: Sequence[str],
    refused: Mapping[str, str],
    undeliverable: Collection[str],
) -> None:
    """Forget events that were published or can't ever be, and tell why the broker refused others for now."""
    if ended := [*published, *undeliverable]:
        conn.execute(delete(events).where(events.c.id.in_(ended)))
    for event_id, reason in refused.items():
        conn.execute(update(events).where(events.c.id == event_id).values(reason=reason))


class EventOutbox:
    """The functions above as the relay calls them."""

    def __init__(self, database: Database) -> None:
        """Relay from this database."""
        self._database = database

    async def pending(self, *, limit: int, without: Collection[str]) -> list[StoredEvent] | None:
        """See `pending`; None while another process is the one that relays events."""
        if not await self._database.is_leader(Lock.EVENTS, for_seconds=TAKE_OVER_SECONDS):
            return None
        return await self._database.read(pending, limit=limit, without=without)

    async def record(
        self, *, published: Sequence[str], refused: Mapping[str, str], undeliverable: Mapping[str, str]
    ) -> None:
        """See `record`."""
        await self._database.write(record, published=published, refused=refused, undeliverable=undeliverable)

    async def tell(self, outage: str | None) -> bool:
        """See `Outbox.tell`."""
        return await outages.tell(self._database, Lock.EVENTS, "event", outage)
