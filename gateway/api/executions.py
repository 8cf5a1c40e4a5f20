"""The REST API under /api/v1: execution requests, and the stream of new ones."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import sqlalchemy
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.endpoints import sse
from gateway.api.openapi import Operation
from gateway.api.query import choice, connection_filter, limit, number
from gateway.api.schemas import Page
from gateway.api.views import ExecutionView
from gateway.store import deliveries, executions
from gateway.store.database import Database
from gateway.store.executions import ExecutionState, StoredRequest
from gateway.store.notify import Notifier

log = structlog.get_logger()

_POLL_SECONDS = 1.0
# Polls without a new request after which a comment keeps the stream alive.
_KEEPALIVE_POLLS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Executions:
    """The endpoints for execution requests. `requests` wakes the relay, and the streams of followers."""

    database: Database
    requests: Notifier
    is_closing: Callable[[], bool]
    has_broker: bool

    def operations(self) -> list[Operation]:
        """Return the operations on execution requests."""
        return [
            Operation(
                method="GET",
                path="/executions",
                endpoint=self.list_executions,
                query=("connection", "delivery", "state", "limit", "cursor"),
            ),
            # Before /executions/{id}, because the first route that matches a path answers it.
            Operation(
                method="GET",
                path="/executions/stream",
                endpoint=self.stream_executions,
                headers=("Last-Event-ID",),
                media_types=("text/event-stream",),
            ),
            Operation(method="GET", path="/executions/{id}", endpoint=self.show_execution),
            Operation(method="POST", path="/executions/{id}/drop", endpoint=self.drop),
        ]

    async def list_executions(self, request: Request) -> Page[ExecutionView]:
        """`GET /executions`: list execution requests, newest first.

        A page holds fewer than `limit` requests where their messages are large.
        """
        query, max_items = request.query_params, limit(request)
        before = number(query.get("cursor"), "cursor")
        state = choice(get_args(ExecutionState), query.get("state"), "state")
        delivery = query.get("delivery")

        def read_page(conn: sqlalchemy.Connection) -> Page[ExecutionView]:
            if delivery is not None:
                deliveries.get(conn, delivery)
            found, are_older = executions.page(
                conn,
                connection=connection_filter(conn, query.get("connection")),
                delivery=delivery,
                state=state,
                before=before,
                limit=max_items,
            )
            items = views(conn, found, has_broker=self.has_broker)
            return Page[ExecutionView](items=items, next=str(found[-1].seq) if are_older else None)

        return await self.database.read(read_page)

    async def show_execution(self, request: Request) -> ExecutionView:
        """`GET /executions/{id}`: return an execution request with its message."""
        request_id = request.path_params["id"]

        def read_view(conn: sqlalchemy.Connection) -> ExecutionView:
            [view] = views(conn, [executions.get(conn, request_id)], has_broker=self.has_broker)
            return view

        return await self.database.read(read_view)

    async def drop(self, request: Request) -> ExecutionView:
        """`POST /executions/{id}/drop`: withdraw a pending request; requests behind it are published."""
        dropped = await self.database.write(executions.drop, request_id=request.path_params["id"])
        log.info("execution dropped", id=dropped.id, connection=dropped.connection)
        self.requests.notify()
        return ExecutionView.of(dropped)

    async def stream_executions(self, request: Request) -> Response:
        """`GET /executions/stream`: stream new requests as server-sent events.

        The stream starts now, or behind the event that the header Last-Event-ID names.
        """
        seen = number(request.headers.get("last-event-id"), "Last-Event-ID")
        if seen is None:
            seen = await self.database.read(executions.last_seq)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(self._follow(seen), media_type="text/event-stream", headers=headers)

    async def _follow(self, seen: int) -> AsyncIterator[bytes]:
        wakeups = self.requests.subscribe()
        # With the position in the stream, so that a client that is cut off can resume from there.
        yield f": following\nid: {seen}\n\n".encode()
        quiet = 0
        while not self.is_closing():
            found = await self.database.read(executions.planned_after, seq=seen, limit=100)
            for stored in found:
                seen = stored.seq
                yield sse(event="execution", event_id=str(seen), data=ExecutionView.of(stored))
            quiet = 0 if found else quiet + 1
            if quiet and quiet % _KEEPALIVE_POLLS == 0:
                yield b": still here\n\n"
            if not found:
                await wakeups.wait(_POLL_SECONDS)


def views(
    conn: sqlalchemy.Connection, requests: Sequence[StoredRequest], *, has_broker: bool
) -> list[ExecutionView]:
    """Return the views of these requests; pending ones include the reason why they wait."""
    return [
        ExecutionView.of(stored) for stored in executions.explained(conn, requests, has_broker=has_broker)
    ]
