"""The REST API under /api/v1: deliveries, and the explanation of what became of them."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy
from starlette.requests import Request

from gateway.api.delivery_filters import FILTERS, delivery_filters, found
from gateway.api.executions import Executions
from gateway.api.explain import by_id, explained
from gateway.api.openapi import Operation
from gateway.api.query import limit, wrong
from gateway.api.replays import why_not_replayed
from gateway.api.views import (
    DeliveryPage,
    DeliveryView,
    ExplainedExecutionView,
    ExplainedPage,
    ExplainedView,
)
from gateway.errors import Conflict
from gateway.store import deliveries, status_tasks, work_queue
from gateway.store.database import Database
from gateway.store.deliveries import RecordedDelivery
from gateway.store.executions import StoredRequest
from gateway.store.notify import Notifier
from gateway.store.refusals import RecordedRefusal
from gateway.store.status_tasks import SentStatus
from gateway.threads import API

_DELIVERY_ID = re.compile(r"[0-9a-f-]{36}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deliveries:
    """The endpoints for deliveries. `pushes` wakes the workers; `executions` shows their requests."""

    database: Database
    pushes: Notifier
    executions: Executions

    def operations(self) -> list[Operation]:
        """Return the operations on deliveries."""
        return [
            Operation(
                method="GET",
                path="/deliveries",
                endpoint=self.list_deliveries,
                query=(*FILTERS, "limit", "cursor"),
            ),
            Operation(method="GET", path="/deliveries/{id}", endpoint=self.get_delivery),
            Operation(
                method="POST",
                path="/deliveries/{id}/replay",
                endpoint=self.replay_delivery,
                status=202,
                location="/deliveries/{id}",
            ),
            Operation(
                method="GET", path="/explain", endpoint=self.explain, query=("what", "limit", "cursor")
            ),
        ]

    async def list_deliveries(self, request: Request) -> DeliveryPage:
        """`GET /deliveries`: list deliveries, newest first.

        Refused requests are listed only with `outcome=refused`: the latest of each connection. A page may
        have fewer than `limit` items although there is a next one.
        """
        max_items, before = limit(request), _cursor(request.query_params.get("cursor"))

        def read_page(conn: sqlalchemy.Connection) -> DeliveryPage:
            filters = delivery_filters(conn, request.query_params)
            page, following = found(conn, filters, before=before, limit=max_items)
            # Built here, off the event loop: a delivery may have thousands of ref updates.
            return DeliveryPage(items=[DeliveryView.of(delivery) for delivery in page], next=following)

        return await self.database.read(read_page)

    async def get_delivery(self, request: Request) -> DeliveryView:
        """`GET /deliveries/{id}`: return a delivery with its ref updates."""
        delivery_id = request.path_params["id"]
        delivery = await self.database.read(by_id, delivery_id)
        return DeliveryView.of(delivery)

    async def replay_delivery(self, request: Request) -> DeliveryView:
        """`POST /deliveries/{id}/replay`: fetch and plan it again; existing requests keep their ids."""
        delivery_id = request.path_params["id"]

        def replay(conn: sqlalchemy.Connection) -> DeliveryView:
            delivery = by_id(conn, delivery_id)
            if isinstance(delivery, RecordedRefusal):
                raise Conflict("nothing of a refused request is stored: let the provider send it again")
            reason = why_not_replayed(delivery)
            if reason is not None:
                raise Conflict(reason)
            work_queue.replay(conn, delivery_id, now=datetime.now(UTC))
            return DeliveryView.of(deliveries.get(conn, delivery_id))

        view = await self.database.write(replay)
        self.pushes.notify()
        return view

    async def explain(self, request: Request) -> ExplainedPage:
        """`GET /explain?what=`: find the deliveries that an id, commit or URL refers to, oldest first.

        Without `limit`, the answer has all of them.
        """
        query = request.query_params
        max_items = limit(request) if "limit" in query else None
        found = await self.explained(query.get("what", ""))
        ids, cursor = [each.id for each in found], query.get("cursor")
        if cursor is not None and cursor not in ids:
            raise wrong("cursor", "cursor is not a value that this API has returned")
        items = found if cursor is None else found[ids.index(cursor) + 1 :]
        page = items[:max_items]
        return ExplainedPage(items=page, next=page[-1].id if len(page) < len(items) else None)

    async def explained(self, what: str) -> list[ExplainedView]:
        """Return the deliveries that `what` refers to, with their execution requests."""
        if not what.strip():
            raise wrong("what", "what: give the id of a delivery or execution, a commit, or a URL")
        found, statuses = await self.database.read(self._explained, what)
        signed = [(delivery, await self.executions.signed(requests)) for delivery, requests in found]
        # In a thread, because a delivery may have thousands of ref updates.
        return await API.run(
            lambda: [
                ExplainedView.with_executions(
                    delivery,
                    [ExplainedExecutionView.of(stored) for stored in requests],
                    statuses.get(delivery.id, ()),
                )
                for delivery, requests in signed
            ]
        )

    def _explained(
        self, conn: sqlalchemy.Connection, what: str
    ) -> tuple[
        list[tuple[RecordedDelivery | RecordedRefusal, list[StoredRequest]]], dict[str, list[SentStatus]]
    ]:
        """Return deliveries with their requests, and the verdicts on their commits by delivery."""
        found = [
            (delivery, self.executions.explained(conn, requests))
            for delivery, requests in explained(conn, what)
        ]
        return found, status_tasks.of_deliveries(conn, [delivery.id for delivery, _ in found])


def _cursor(text: str | None) -> str | None:
    if text is not None and not _DELIVERY_ID.fullmatch(text):
        raise wrong("cursor", "cursor is not a value that this API has returned")
    return text
