"""The outbox of execution requests, as the relay uses it."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

from gateway.store import outages
from gateway.store.database import Database, Lock
from gateway.store.executions import StoredRequest, pending, record

# Longer than a relay goes on sending after it has asked for requests: see gateway/publish/relay.py.
TAKE_OVER_SECONDS = 2.0


class Outbox:
    """The functions above as the relay calls them."""

    def __init__(self, database: Database) -> None:
        """Relay from this database."""
        self._database = database

    async def pending(self, *, limit: int, without: Collection[str]) -> list[StoredRequest] | None:
        """See `pending`; None while another process is the one that relays, or may be at its last batch.

        One that lost its lock with its connection to the database does not know until it asks again.
        """
        if not await self._database.is_leader(Lock.RELAY, for_seconds=TAKE_OVER_SECONDS):
            return None
        return await self._database.read(pending, limit=limit, without=without)

    async def record(
        self, *, published: Sequence[str], refused: Mapping[str, str], undeliverable: Mapping[str, str]
    ) -> None:
        """See `record`."""
        await self._database.write(
            record,
            published=published,
            refused=refused,
            undeliverable=undeliverable,
            now=datetime.now(UTC),
        )

    async def tell(self, outage: str | None) -> bool:
        """Record why nothing is published, or that all is well; False where another process relays."""
        return await outages.tell(self._database, Lock.RELAY, "request", outage)
