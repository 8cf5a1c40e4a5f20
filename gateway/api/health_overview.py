"""The REST API under /api/v1: the health of all connections."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy
from starlette.requests import Request

from gateway.api.connection_views import ConnectionHealthView, HealthPage, HealthView
from gateway.api.openapi import Operation
from gateway.api.query import choice, limit
from gateway.api.views import view_of
from gateway.store import connections
from gateway.store.connection_facts import facts
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.worker.connection_health import STATES, Health, State, access_of, health

# How many connections a filter examines for one answer.
_MAX_EXAMINED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthOverview:
    """The endpoint for the health of all connections."""

    database: Database

    def operations(self) -> list[Operation]:
        """Return the operations on health."""
        query = ("state", "limit", "cursor")
        return [Operation(method="GET", path="/health", endpoint=self.list_health, query=query)]

    async def list_health(self, request: Request) -> HealthPage:
        """`GET /health`: list connections with their health, oldest first.

        With `state`, an answer may have fewer items than `limit`, or none, although it has a `next`.
        """
        query = request.query_params
        state = choice(STATES, query.get("state"), "state")
        return await self.page(state=state, after=query.get("cursor"), max_items=limit(request))

    async def page(self, *, state: State | None, after: str | None, max_items: int) -> HealthPage:
        """Return the health of the connections after the one with the id `after`; of those with one state."""
        examined = max_items if state is None else _MAX_EXAMINED

        def read_page(conn: sqlalchemy.Connection) -> HealthPage:
            found = connections.page(conn, after=after, limit=examined + 1)
            views: list[ConnectionHealthView] = []
            for connection, its_health in _healths(conn, found[:examined]):
                if len(views) == max_items:
                    return HealthPage(items=views, next=views[-1].id)
                if state in {None, its_health.state}:
                    views.append(_view(connection, its_health))
            return HealthPage(items=views, next=found[examined - 1].id if len(found) > examined else None)

        return await self.database.read(read_page)


def in_states(
    conn: sqlalchemy.Connection, states: Sequence[State], *, limit: int
) -> dict[State, list[ConnectionHealthView]]:
    """Return up to `limit` of the connections in each of these states, the oldest first, by their states.

    Each connection is examined once, up to a number of connections.
    """
    found: dict[State, list[ConnectionHealthView]] = {state: [] for state in states}
    for connection, its_health in _healths(conn, connections.page(conn, after=None, limit=_MAX_EXAMINED)):
        views = found.get(its_health.state)
        if views is not None and len(views) < limit:
            views.append(_view(connection, its_health))
    return found


def _healths(conn: sqlalchemy.Connection, found: Sequence[Connection]) -> Iterator[tuple[Connection, Health]]:
    """Yield connections with their health."""
    now = datetime.now(UTC)
    known = facts(conn, found, now=now)
    for connection in found:
        yield connection, health(connection, known[connection.id], access_of(connection), now=now)


def _view(connection: Connection, its_health: Health) -> ConnectionHealthView:
    return view_of(ConnectionHealthView, connection, health=HealthView.of_health(its_health))
