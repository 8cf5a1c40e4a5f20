"""Events: messages about how ref updates ended, and cancellations of executions. This table is their outbox.

An event is written in the transaction of what it is about, and deleted after the broker's confirm.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import sqlalchemy
from sqlalchemy import delete, insert, select, update

from gateway.store import outages
from gateway.store.database import Database, Lock
from gateway.store.leading import TAKE_OVER_SECONDS
from gateway.store.rows import from_row
from gateway.store.tables import events


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event that is not stored yet. `name` is its type, such as push.fetched.

    `body` is the JSON of the wire contract, `subject` a description for people.
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
    """A pending event. `seq` is the order of publishing, `reason` the broker's last refusal, if any."""

    seq: int
    settled_at: datetime
    reason: str | None = None


def add(conn: sqlalchemy.Connection, new: Sequence[NewEvent], *, now: datetime) -> None:
    """Add events to the outbox."""
    if new:
        conn.execute(insert(events), [{**asdict(event), "settled_at": now} for event in new])


def pending(
    conn: sqlalchemy.Connection, *, limit: int, without: Collection[str], names: Collection[str] | None = None
) -> list[StoredEvent]:
    """Return pending events in order, of these names, except those of the connections in `without`."""
    query = select(events).order_by(events.c.seq).limit(limit)
    if names is not None:
        query = query.where(events.c.name.in_(names))
    if without:
        query = query.where(events.c.connection.not_in(without))
    return [from_row(StoredEvent, row) for row in conn.execute(query)]


def record(
    conn: sqlalchemy.Connection,
    *,
    published: Sequence[str],
    refused: Mapping[str, str],
    undeliverable: Collection[str],
) -> None:
    """Delete events that were published or never can be, and record why the broker refused others."""
    if ended := [*published, *undeliverable]:
        conn.execute(delete(events).where(events.c.id.in_(ended)))
    for event_id, reason in refused.items():
        conn.execute(update(events).where(events.c.id == event_id).values(reason=reason))


class EventOutbox:
    """Pending events, for the one process that leads."""

    def __init__(self, database: Database, names: Collection[str] | None = None) -> None:
        """Relay from this database, the events of these names or all."""
        self._database = database
        self._names = names

    async def pending(self, *, limit: int, without: Collection[str]) -> list[StoredEvent] | None:
        """Return pending events; None while another process leads."""
        if not await self._database.is_leader(Lock.EVENTS, for_seconds=TAKE_OVER_SECONDS):
            return None
        return await self._database.read(pending, limit=limit, without=without, names=self._names)

    async def record(
        self, *, published: Sequence[str], refused: Mapping[str, str], undeliverable: Mapping[str, str]
    ) -> None:
        """See `record`."""
        await self._database.write(record, published=published, refused=refused, undeliverable=undeliverable)

    async def record_outage(self, outage: str | None) -> bool:
        """See `Outbox.record_outage`."""
        return await outages.record_if_leading(self._database, Lock.EVENTS, "event", outage)
