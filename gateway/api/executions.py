"""The REST API under /api/v1: execution requests, and the stream of new ones and of changes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import get_args

import sqlalchemy
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.delivery_filters import words
from gateway.api.endpoints import sse
from gateway.api.openapi import Operation
from gateway.api.query import choice, connection_filter, limit, moment, number
from gateway.api.views import ExecutionPage, ExecutionSummary, ExecutionView
from gateway.errors import Conflict
from gateway.messages.execution_states import ExecutionState
from gateway.packages.signing import PackageSigner
from gateway.packages.storage import PackageStorage
from gateway.publish.status_urls import StatusUrls
from gateway.store import cancellations, deliveries, executions, reruns, runs, waiting_requests
from gateway.store.database import Database
from gateway.store.execution_search import ExecutionFilters
from gateway.store.executions import StoredRequest, expired_package
from gateway.store.notify import Notifier
from gateway.threads import API

log = structlog.get_logger()

_FILTERS = ("connection", "delivery", "state", "branch", "author", "since", "until", "q")
_POLL_SECONDS = 1.0
# Polls without a new request after which a comment keeps the stream alive.
_KEEPALIVE_POLLS = 15
# Signing takes 0.1 ms for each request, and a delivery may have thousands: others get their turn in between.
_SIGNED_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Executions:
    """The endpoints for execution requests. `requests` wakes the relay; both notifiers wake followers."""

    database: Database
    storage: PackageStorage
    signer: PackageSigner
    status_urls: StatusUrls
    requests: Notifier
    reports: Notifier
    is_closing: Callable[[], bool]
    has_broker: bool

    def operations(self) -> list[Operation]:
        """Return the operations on execution requests."""
        return [
            Operation(
                method="GET",
                path="/executions",
                endpoint=self.list_executions,
                query=(*_FILTERS, "limit", "cursor"),
            ),
            # Before /executions/{id}, because the first route that matches a path answers it.
            Operation(
                method="GET",
                path="/executions/stream",
                endpoint=self.stream_executions,
                headers=("Last-Event-ID",),
                media_types=("text/event-stream",),
            ),
            Operation(method="GET", path="/executions/{id}", endpoint=self.get_execution),
            Operation(method="POST", path="/executions/{id}/drop", endpoint=self.drop_execution),
            Operation(
                method="POST",
                path="/executions/{id}/republish",
                endpoint=self.republish_execution,
                status=202,
                errors=(409,),
                location="/executions/{id}",
            ),
            Operation(
                method="POST",
                path="/executions/{id}/cancel",
                endpoint=self.cancel_execution,
                status=202,
                errors=(409,),
                location="/executions/{id}",
            ),
            Operation(
                method="POST",
                path="/executions/{id}/rerun",
                endpoint=self.rerun_execution,
                status=201,
                query=("key",),
                errors=(409,),
                location="/executions/{id}",
            ),
        ]

    async def list_executions(self, request: Request) -> ExecutionPage:
        """`GET /executions`: list execution requests, newest first.

        A page may have fewer than `limit` items although there is a next one: messages may be large.
        """
        query, max_items = request.query_params, limit(request)
        before = number(query.get("cursor"), "cursor")

        def read_page(conn: sqlalchemy.Connection) -> tuple[list[StoredRequest], int | None]:
            filters = _filters(conn, query)
            found, following = executions.search(conn, filters, before=before, limit=max_items)
            return self.explained(conn, found), following

        found, following = await self.database.read(read_page)
        items = await self.views(found)
        return ExecutionPage(items=items, next=None if following is None else str(following))

    async def get_execution(self, request: Request) -> ExecutionView:
        """`GET /executions/{id}`: return an execution request with its message."""
        request_id = request.path_params["id"]

        def read_one(conn: sqlalchemy.Connection) -> list[StoredRequest]:
            return self.explained(conn, [executions.get(conn, request_id)])

        [view] = await self.views(await self.database.read(read_one))
        return view

    def explained(
        self, conn: sqlalchemy.Connection, requests: Sequence[StoredRequest]
    ) -> list[StoredRequest]:
        """Return requests, each one that waits with the reason."""
        now = datetime.now(UTC)
        return waiting_requests.explained(conn, requests, has_broker=self.has_broker, now=now)

    async def views(self, requests: Sequence[StoredRequest]) -> list[ExecutionView]:
        """Return the views of requests, with URLs that work now."""
        signed = await self.signed(requests)
        # In a thread, because the messages may be large.
        return await API.run(lambda: [ExecutionView.of(stored) for stored in signed])

    async def signed(self, requests: Sequence[StoredRequest]) -> list[StoredRequest]:
        """Return requests with URLs for their packages and reports that work now."""
        signed: list[StoredRequest] = []
        for start in range(0, len(requests), _SIGNED_AT_ONCE):
            some = requests[start : start + _SIGNED_AT_ONCE]
            signed += await asyncio.gather(*map(self._signed, some))
        return signed

    async def _signed(self, stored: StoredRequest) -> StoredRequest:
        # To the hour, so that a page which refreshes itself does not change each time.
        now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
        return self.status_urls.completed(await self.signer.shown(stored), now=now)

    async def drop_execution(self, request: Request) -> ExecutionView:
        """`POST /executions/{id}/drop`: withdraw a pending request; requests behind it are published.

        An undeliverable request is given up.
        """
        [view] = await self.views([await self.drop(request.path_params["id"])])
        return view

    async def drop(self, request_id: str) -> StoredRequest:
        """Drop a request. Raises `NotFound` or `Invalid`."""
        dropped = await self.database.write(executions.drop, request_id=request_id)
        log.info("execution dropped", id=dropped.id, connection=dropped.connection)
        self.requests.notify()
        return dropped

    async def cancel_execution(self, request: Request) -> ExecutionView:
        """`POST /executions/{id}/cancel`: withdraw a pending request, or tell its runner to stop it.

        A request that was published is `cancelled` once its runner has reported that. A repetition changes
        nothing.
        """
        request_id = request.path_params["id"]
        cancelled = await self.database.write(cancellations.cancel, request_id, now=datetime.now(UTC))
        log.info("execution cancelled", id=request_id, connection=cancelled.connection)
        self.requests.notify()
        [view] = await self.views([cancelled])
        return view

    async def republish_execution(self, request: Request) -> ExecutionView:
        """`POST /executions/{id}/republish`: publish a request again, with the same id and a new URL."""
        [view] = await self.views([await self.republish(request.path_params["id"])])
        return view

    async def republish(self, request_id: str) -> StoredRequest:
        """Publish a request again. Raises `NotFound` or `Conflict`."""
        if not self.has_broker:
            raise Conflict(
                "no broker is configured: set PUSHGATE_AMQP_URL, and pending requests are published"
            )
        await self._check_package(request_id)
        again = await self.database.write(reruns.republish, request_id, now=datetime.now(UTC))
        log.info("execution republished", id=again.id, connection=again.connection, redrives=again.redrives)
        self.requests.notify()
        return again

    async def rerun_execution(self, request: Request) -> ExecutionView:
        """`POST /executions/{id}/rerun`: run an execution again, as a new one that names it.

        Calls with the same `key` make one re-run, and calls without a key one each.
        """
        request_id = request.path_params["id"]
        await self._check_package(request_id)
        # Stored with the re-run, so that a repetition makes no other even if the process is killed.
        key = request.query_params.get("key", request.headers.get("idempotency-key"))
        again = await self.database.write(reruns.rerun, request_id, now=datetime.now(UTC), key=key)
        log.info("execution re-run", id=again.id, rerun_of=request_id, connection=again.connection)
        self.requests.notify()
        [view] = await self.views([again])
        return view

    async def _check_package(self, request_id: str) -> None:
        """Raise `Conflict` if the storage no longer has the package of a request."""
        stored = await self.database.read(executions.get, request_id)
        kept = stored.package
        if kept is not None and await self.storage.size(kept.object) != kept.size:
            raise Conflict(expired_package(stored))

    async def stream_executions(self, request: Request) -> Response:
        """`GET /executions/stream`: stream new requests and reports as server-sent events.

        The stream starts now, or behind the event that the header Last-Event-ID names. It does not end.
        The data of each event `execution` is an ExecutionView of a new request, that of each event `state` an
        ExecutionSummary of a request about which a runner has reported.
        """
        given = request.headers.get("last-event-id")
        seen, revision = (number(part or None, "Last-Event-ID") for part in _parts(given))
        if seen is None:
            seen = await self.database.read(executions.last_seq)
        if revision is None:
            revision = await self.database.read(runs.last_revision)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return StreamingResponse(
            self._follow(seen, revision), media_type="text/event-stream", headers=headers
        )

    async def _follow(self, seen: int, revision: int) -> AsyncIterator[bytes]:
        wakeups = self.requests.subscribe()
        self.reports.add(wakeups)
        # With the position in the stream, so that a client that is cut off can resume from there.
        yield f": following\nid: {seen}-{revision}\n\n".encode()
        quiet = 0
        while not self.is_closing():
            found = await self.database.read(executions.planned_after, seq=seen, limit=100)
            for stored, view in zip(found, await self.views(found), strict=True):
                seen = stored.seq
                yield sse(event="execution", event_id=f"{seen}-{revision}", data=view)
            changes = await self.database.read(_changes, revision)
            for number_of_change, stored in changes:
                revision = number_of_change
                summary = ExecutionSummary.summary_of(stored)
                yield sse(event="state", event_id=f"{seen}-{revision}", data=summary)
            quiet = 0 if found or changes else quiet + 1
            if quiet and quiet % _KEEPALIVE_POLLS == 0:
                yield b": still here\n\n"
            if not found and not changes:
                await wakeups.wait(_POLL_SECONDS)


def _changes(conn: sqlalchemy.Connection, revision: int) -> list[tuple[int, StoredRequest]]:
    """Return the next requests about which a runner has reported, by the revision of the report."""
    changed = runs.changed_after(conn, revision, limit=100)
    found = {stored.seq: stored for stored in executions.numbered(conn, list(changed.values()))}
    return [(number, found[seq]) for number, seq in changed.items()]


def _parts(event_id: str | None) -> tuple[str, str]:
    """Return the two positions that the id of an event names; earlier versions have given out the first."""
    seen, _, revision = (event_id or "").partition("-")
    return seen, revision


def _filters(conn: sqlalchemy.Connection, query: Mapping[str, str]) -> ExecutionFilters:
    """Return the filters of a query. Raises `Invalid` and `NotFound`."""
    delivery = query.get("delivery")
    if delivery is not None:
        deliveries.get(conn, delivery)
    return ExecutionFilters(
        connection=connection_filter(conn, query.get("connection")),
        delivery=delivery,
        state=choice(get_args(ExecutionState), query.get("state"), "state"),
        branch=words(query, "branch"),
        author=words(query, "author"),
        since=moment(query.get("since"), "since"),
        until=moment(query.get("until"), "until"),
        search=words(query, "q"),
    )
