"""The REST API under /api/v1: what was delivered, and what came of it."""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import get_args

import sqlalchemy
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.endpoints import limit, sse
from gateway.api.explain import explained
from gateway.api.openapi import Operation
from gateway.api.schemas import DeliveryView, ExecutionView, ExplainedView, Page
from gateway.errors import Invalid
from gateway.store import connections, deliveries, executions, work_queue
from gateway.store.database import Database
from gateway.store.deliveries import Verdict
from gateway.store.executions import ExecutionState, StoredRequest
from gateway.store.notify import Notifier

log = structlog.get_logger()

_FOLLOW_SECONDS = 1.0
_KEEPALIVE_EVERY = 15
_MAX_CURSOR_DIGITS = 18
_DELIVERY = re.compile(r"[0-9a-f-]{36}")
_BEGINNING_OF_AN_ID = re.compile(r"[0-9a-f]{7,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """The endpoints and what they work with; `pushes` wakes the workers, `requests` those who follow."""

    database: Database
    pushes: Notifier
    requests: Notifier
    is_closing: Callable[[], bool]
    has_broker: bool

    def operations(self) -> list[Operation]:
        """Return what can be asked."""
        page = ("limit", "cursor")
        return [
            Operation(
                method="GET",
                path="/deliveries",
                endpoint=self.list_deliveries,
                query=("connection", "verdict", "commit", *page),
            ),
            Operation(method="GET", path="/deliveries/{id}", endpoint=self.show_delivery),
            Operation(method="POST", path="/deliveries/{id}/replay", endpoint=self.replay, status=202),
            Operation(
                method="GET",
                path="/executions",
                endpoint=self.list_executions,
                query=("connection", "delivery", "state", *page),
            ),
            # Before the one below, because a request is held against one after the other.
            Operation(
                method="GET",
                path="/executions/stream",
                endpoint=self.stream_executions,
                headers=("Last-Event-ID",),
                media_types=("text/event-stream",),
            ),
            Operation(method="GET", path="/executions/{id}", endpoint=self.show_execution),
            Operation(method="POST", path="/executions/{id}/drop", endpoint=self.drop),
            Operation(method="GET", path="/explain", endpoint=self.explain, query=("what",)),
        ]

    async def replay(self, request: Request) -> DeliveryView:
        """`POST /deliveries/{id}/replay`: fetch and plan it again; requests that there are keep their ids."""
        which = request.path_params["id"]

        def replay(conn: sqlalchemy.Connection) -> DeliveryView:
            delivery = deliveries.get(conn, which)
            if delivery.is_orphan:
                raise Invalid("its connection was deleted: nothing can be fetched for it any more")
            if all(update.state == "duplicate" for update in delivery.updates):
                raise Invalid("there is nothing to plan again: none of it was anything new")
            work_queue.replay(conn, which, now=datetime.now(UTC))
            return DeliveryView.of(deliveries.get(conn, which))

        view = await self.database.write(replay)
        self.pushes.notify()
        return view

    async def list_deliveries(self, request: Request) -> Page[DeliveryView]:
        """`GET /deliveries`: the newest first."""
        query, most = request.query_params, limit(request)
        commit = _commit(query.get("commit"))
        verdict = _one_of(get_args(Verdict), query.get("verdict"), "verdict")
        before = _cursor(query.get("cursor"))

        def look(conn: sqlalchemy.Connection) -> Page[DeliveryView]:
            found = deliveries.page(
                conn,
                connection=_connection(conn, query.get("connection")),
                verdict=verdict,
                before=before,
                limit=most + 1,
                commit=commit,
            )
            # Here, off the event loop: each may have thousands of ref updates.
            views = [DeliveryView.of(delivery) for delivery in found[:most]]
            return Page[DeliveryView](items=views, next=views[-1].id if len(found) > most else None)

        return await self.database.read(look)

    async def show_delivery(self, request: Request) -> DeliveryView:
        """`GET /deliveries/{id}`."""
        which = request.path_params["id"]
        found = await self.database.read(lambda conn: deliveries.get(conn, which))
        return DeliveryView.of(found)

    async def list_executions(self, request: Request) -> Page[ExecutionView]:
        """`GET /executions`: the newest first; a page holds fewer than `limit` where messages are large."""
        query, most = request.query_params, limit(request)
        before = _number(query.get("cursor"), "cursor")
        state = _one_of(get_args(ExecutionState), query.get("state"), "state")
        delivery = query.get("delivery")

        def look(conn: sqlalchemy.Connection) -> Page[ExecutionView]:
            if delivery is not None:
                deliveries.get(conn, delivery)
            found, are_older = executions.page(
                conn,
                connection=_connection(conn, query.get("connection")),
                delivery=delivery,
                state=state,
                before=before,
                limit=most,
            )
            views = self.views(conn, found)
            return Page[ExecutionView](items=views, next=str(found[-1].seq) if are_older else None)

        return await self.database.read(look)

    async def show_execution(self, request: Request) -> ExecutionView:
        """`GET /executions/{id}`."""
        which = request.path_params["id"]

        def look(conn: sqlalchemy.Connection) -> ExecutionView:
            [view] = self.views(conn, [executions.get(conn, which)])
            return view

        return await self.database.read(look)

    def views(self, conn: sqlalchemy.Connection, requests: Sequence[StoredRequest]) -> list[ExecutionView]:
        """Return requests as they are shown, the pending ones with the reason why they wait."""
        explained = executions.explained(conn, requests, has_broker=self.has_broker)
        return [ExecutionView.of(one) for one in explained]

    async def drop(self, request: Request) -> ExecutionView:
        """`POST /executions/{id}/drop`: take a pending one back; what waits behind it is published."""
        dropped = await self.database.write(partial(executions.drop, request_id=request.path_params["id"]))
        log.info("execution dropped", id=dropped.id, connection=dropped.connection)
        self.requests.notify()
        return ExecutionView.of(dropped)

    async def explain(self, request: Request) -> Page[ExplainedView]:
        """`GET /explain?what=`: what somebody means, by the deliveries it is about, the oldest first."""
        items = await self.explained(request.query_params.get("what", ""))
        return Page[ExplainedView](items=items, next=None)

    async def explained(self, what: str) -> list[ExplainedView]:
        """Return what `explain` answers."""
        if not what.strip():
            raise Invalid("what: name a delivery, an execution, a commit, or a page about one of them")
        return await self.database.read(
            lambda conn: [
                ExplainedView.with_executions(delivery, self.views(conn, requests))
                for delivery, requests in explained(conn, what)
            ]
        )

    async def stream_executions(self, request: Request) -> Response:
        """`GET /executions/stream`: server-sent events, from now on or after the header Last-Event-ID."""
        seen = _number(request.headers.get("last-event-id"), "Last-Event-ID")
        if seen is None:
            seen = await self.database.read(executions.last_seq)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(self._follow(seen), media_type="text/event-stream", headers=headers)

    async def _follow(self, seen: int) -> AsyncIterator[bytes]:
        wakeups = self.requests.subscribe()
        # With the place in the stream, so that whoever is cut off can go on from there.
        yield f": following\nid: {seen}\n\n".encode()
        quiet = 0
        while not self.is_closing():
            found = await self.database.read(partial(executions.planned_after, seq=seen, limit=100))
            for stored in found:
                seen = stored.seq
                yield sse(event="execution", event_id=str(seen), data=ExecutionView.of(stored))
            quiet = 0 if found else quiet + 1
            if quiet and quiet % _KEEPALIVE_EVERY == 0:
                yield b": still here\n\n"
            if not found:
                await wakeups.wait(_FOLLOW_SECONDS)


def _connection(conn: sqlalchemy.Connection, text: str | None) -> str | None:
    """Return the id of the connection that a filter names. Raises `NotFound`: a list would seem empty."""
    return None if text is None else connections.find(conn, text)


def _commit(text: str | None) -> str | None:
    if text is not None and not _BEGINNING_OF_AN_ID.fullmatch(text.lower()):
        raise Invalid("commit is 7 to 64 hex digits: an object id, or its beginning")
    return text.lower() if text is not None else None


def _one_of(known: tuple[str, ...], text: str | None, name: str) -> str | None:
    if text is not None and text not in known:
        raise Invalid(f"{name} is one of {', '.join(known)}")
    return text


def _cursor(text: str | None) -> str | None:
    if text is not None and not _DELIVERY.fullmatch(text):
        raise Invalid("cursor is not one that this API has given")
    return text


def _number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_CURSOR_DIGITS):
        raise Invalid(f"{name} is not one that this API has given")
    return int(text)
