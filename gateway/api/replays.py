"""The REST API under /api/v1: replay many deliveries, those that filters select."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy
from pydantic import Field
from starlette.requests import Request

from gateway.api.delivery_filters import delivery_filters
from gateway.api.endpoints import read
from gateway.api.openapi import Operation
from gateway.api.schemas import RequestBody
from gateway.api.views import Outcome, View
from gateway.errors import Invalid
from gateway.store import deliveries, work_queue
from gateway.store.database import Database
from gateway.store.deliveries import RecordedDelivery
from gateway.store.delivery_search import DeliveryFilters
from gateway.store.notify import Notifier

MAX_AT_ONCE = 500
"""How many deliveries one request replays; its answer leads on to the others."""

# In one transaction: accepting new deliveries waits for no more.
_BATCH = 50
_NOT_FILTERS = {"dry_run", "cursor"}


class ReplaySelection(RequestBody):
    """Which deliveries to replay: the filters of the list, of which at least one is needed."""

    connection: str | None = Field(default=None, description="those of this connection, by its id or name")
    outcome: Outcome | None = Field(default=None, description="those with this outcome")
    branch: str | None = Field(default=None, description="those of this ref, by its short or full name")
    author: str | None = Field(default=None, description="those of this person")
    since: datetime | None = Field(default=None, description="those that were received since then")
    until: datetime | None = Field(default=None, description="those that were received before then")
    commit: str | None = Field(default=None, description="those that moved a ref to this commit")
    q: str | None = Field(default=None, description="those that a search finds, as in the list")
    dry_run: bool = Field(default=False, description="whether to change nothing, and only answer")
    cursor: str | None = Field(default=None, description="the `next` of the previous answer")


class RefusedReplay(View):
    """A delivery that cannot be replayed."""

    delivery: str = Field(description="the id of the delivery")
    reason: str = Field(description="why, in a sentence for people")


class ReplayResult(View):
    """What was replayed, or would be."""

    dry_run: bool = Field(description="whether nothing was changed")
    count: int = Field(description="how many deliveries were replayed, or would be")
    replayed: list[str] = Field(description="the ids of these deliveries, newest first")
    refused: list[RefusedReplay] = Field(description="the selected deliveries that cannot be replayed")
    next: str | None = Field(
        description="the `cursor` for the deliveries that were received before these; null if there are none"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Replays:
    """The endpoint that replays many deliveries. `pushes` wakes the workers."""

    database: Database
    pushes: Notifier

    def operations(self) -> list[Operation]:
        """Return the operation."""
        return [
            Operation(
                method="POST",
                path="/deliveries/replay",
                endpoint=self.replay_deliveries,
                body=ReplaySelection,
                status=202,
            )
        ]

    async def replay_deliveries(self, request: Request) -> ReplayResult:
        """`POST /deliveries/replay`: fetch and plan the accepted deliveries that filters select, again.

        An answer has at most 500; send its `next` as `cursor` until it is null. Requests that exist keep
        their ids.
        """
        selection = await read(request, ReplaySelection)
        given = selection.model_dump(mode="json", exclude=_NOT_FILTERS, exclude_none=True)
        if not given:
            raise Invalid("give at least one filter, such as since, so that not everything is replayed")
        filters = await self.database.read(delivery_filters, {**given, "verdict": "accepted"})
        result = ReplayResult(
            dry_run=selection.dry_run, count=0, replayed=[], refused=[], next=selection.cursor
        )
        work = self.database.read if selection.dry_run else self.database.write
        while True:
            result = await work(_replay_some, filters, result)
            if result.next is None or len(result.replayed) + len(result.refused) >= MAX_AT_ONCE:
                break
        if result.replayed and not result.dry_run:
            self.pushes.notify()
        return result


def why_not_replayed(delivery: RecordedDelivery) -> str | None:
    """Return why a delivery cannot be replayed; None if it can."""
    if delivery.is_orphan:
        return "the connection of this delivery was deleted: nothing can be fetched for it"
    if all(update.state == "duplicate" for update in delivery.updates):
        return "this delivery has nothing to plan again: none of its ref updates was new"
    return None


def _replay_some(conn: sqlalchemy.Connection, filters: DeliveryFilters, result: ReplayResult) -> ReplayResult:
    """Replay the next deliveries, and return the result with them."""
    found, following = deliveries.search(conn, filters, before=result.next, limit=_BATCH)
    reasons = {delivery.id: why_not_replayed(delivery) for delivery in found}
    # Oldest first, as they were planned before.
    replayed = [name for name, reason in reasons.items() if reason is None]
    if not result.dry_run:
        _replay(conn, replayed[::-1])
    refused = [
        RefusedReplay(delivery=name, reason=reason) for name, reason in reasons.items() if reason is not None
    ]
    return ReplayResult(
        dry_run=result.dry_run,
        count=result.count + len(replayed),
        replayed=result.replayed + replayed,
        refused=result.refused + refused,
        next=following,
    )


def _replay(conn: sqlalchemy.Connection, delivery_ids: Sequence[str]) -> None:
    now = datetime.now(UTC)
    for delivery in delivery_ids:
        work_queue.replay(conn, delivery, now=now)
