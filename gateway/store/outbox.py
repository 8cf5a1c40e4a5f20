"""The outbox of execution requests, as the relay uses it."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

import sqlalchemy

from gateway.store import executions, outages, unexecuted
from gateway.store.database import Database, Lock
from gateway.store.executions import StoredRequest, pending
from gateway.store.leading import TAKE_OVER_SECONDS
from gateway.store.publishing_lanes import SINGLE, PublishingLane


class Outbox:
    """Pending execution requests of a lane, for the one process that leads it."""

    def __init__(self, database: Database, lane: PublishingLane = SINGLE) -> None:
        """Relay from this database, by default the requests of all connections."""
        self._database = database
        self._lane = lane

    async def pending(self, *, limit: int, without: Collection[str]) -> list[StoredRequest] | None:
        """Return pending requests; None while another process leads, or may still send its last batch.

        A process whose connection to the database broke notices the loss of its lock only at the next call.
        """
        if not await self._database.is_leader(Lock.RELAY, self._lane, for_seconds=TAKE_OVER_SECONDS):
            return None
        return await self._database.read(pending, limit=limit, without=without, lane=self._lane)

    async def record(
        self, *, published: Sequence[str], refused: Mapping[str, str], undeliverable: Mapping[str, str]
    ) -> None:
        """Record the broker's answers; see `executions.record`."""
        await self._database.write(
            _record,
            published=published,
            refused=refused,
            undeliverable=undeliverable,
            now=datetime.now(UTC),
        )

    async def record_outage(self, outage: str | None) -> bool:
        """Record why nothing is published, None for no outage. Return False if another process leads.

        Without the broker, leave the lane to processes that may reach it. The single leader remains.
        """
        recorded = await outages.record_if_leading(
            self._database, Lock.RELAY, "request", outage, lane=self._lane
        )
        if outage is not None and self._lane != SINGLE:
            await self._database.step_down(Lock.RELAY, self._lane)
        return recorded


def _record(
    conn: sqlalchemy.Connection,
    *,
    published: Sequence[str],
    refused: Mapping[str, str],
    undeliverable: Mapping[str, str],
    now: datetime,
) -> None:
    executions.record(conn, published=published, refused=refused, undeliverable=undeliverable, now=now)
    unexecuted.add_undeliverable(conn, undeliverable)


def outboxes(database: Database, *, lanes: int) -> list[Outbox]:
    """Return the outbox of each lane."""
    return [Outbox(database, PublishingLane(number, lanes)) for number in range(lanes)]
