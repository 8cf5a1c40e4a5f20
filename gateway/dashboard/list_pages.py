"""The pages of lists, with their filters, and the search over everything."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, get_args
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.connections import Connections
from gateway.api.deliveries import Deliveries
from gateway.api.endpoints import Endpoint
from gateway.api.executions import Executions
from gateway.api.health_overview import HealthOverview
from gateway.api.query import moment, refuse_unknown
from gateway.api.views import ExplainedView
from gateway.dashboard.contents import Explanation
from gateway.dashboard.rendering import Renderer
from gateway.errors import Invalid, NotFound
from gateway.messages.execution_states import ExecutionState
from gateway.store.outcomes import Outcome
from gateway.threads import API
from gateway.worker.connection_health import STATES

# How many records of each kind the search shows.
_MAX_FOUND = 10
_MAX_SEARCH = 500
# A form sends a filter that is not set as an empty value. These parameters are not in the forms.
_NOT_IN_FORMS = {"cursor", "limit", "what"}
# An id, a commit, or a URL: it can name only one thing.
_EXACT = re.compile(r"[0-9a-fA-F]{7,64}|[0-9a-f-]{36}|\S+://\S+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPages:
    """The handlers."""

    connections: Connections
    health: HealthOverview
    deliveries: Deliveries
    executions: Executions
    renderer: Renderer

    def table(self) -> list[tuple[str, str, Endpoint]]:
        """Return the paths with their methods and handlers, for users who have signed in."""
        subjects = (self.connections, self.deliveries, self.executions)
        offered = [operation for subject in subjects for operation in subject.operations()]
        api = {operation.path: operation.query for operation in offered if operation.method == "GET"}
        by_health = (*api["/connections"], "health")
        return [
            ("/connections", "GET", self.filtered(self.list_connections, by_health)),
            ("/deliveries", "GET", self.filtered(self.list_deliveries, api["/deliveries"])),
            ("/executions", "GET", self.filtered(self.list_executions, api["/executions"])),
            ("/explain", "GET", self.filtered(self.explain, api["/explain"])),
            ("/search", "GET", self.filtered(self.search, ("q",))),
        ]

    def filtered(self, page: Endpoint, query: Sequence[str]) -> Endpoint:
        """Return the page with a check that refuses unknown filters, and a redirect without empty ones."""

        async def checked(request: Request) -> Response:
            refuse_unknown(request, query)
            given = request.query_params.multi_items()
            kept = [(name, text) for name, text in given if text.strip() or name in _NOT_IN_FORMS]
            if len(kept) < len(given):
                return self.renderer.redirect(f"{request.url.path}{'?' if kept else ''}{urlencode(kept)}")
            return await page(request)

        return checked

    async def list_connections(self, request: Request) -> Response:
        """`GET /connections`: list connections as the API does, or those whose health is the `health`."""
        query = dict(request.query_params)
        facts: dict[str, Any] = {"query": query, "states": STATES}
        if "health" not in query:
            page = await self.connections.list_connections(request)
            return self.renderer.page("connections.html", page=page, **facts)
        wanted = {"state" if name == "health" else name: text for name, text in query.items() if name != "q"}
        found = await self.health.list_health(_with_query(request, wanted))
        return self.renderer.page("connections-by-health.html", page=found, **facts)

    async def list_deliveries(self, request: Request) -> Response:
        """`GET /deliveries`: list deliveries, with the query parameters of the API."""
        page = await self.deliveries.list_deliveries(request)
        return await self._list("deliveries.html", request, page=page, outcomes=get_args(Outcome))

    async def list_executions(self, request: Request) -> Response:
        """`GET /executions`: list execution requests, with the query parameters of the API."""
        page = await self.executions.list_executions(request)
        return await self._list("executions.html", request, page=page, states=get_args(ExecutionState))

    async def _list(self, template: str, request: Request, **facts: Any) -> Response:
        """Render a list in a thread, because a delivery may have thousands of ref updates."""
        query = dict(request.query_params)
        shown = {
            name: _minute(text, name) if name in {"since", "until"} else text for name, text in query.items()
        }
        return await API.run(self.renderer.page, template, query=query, shown=shown, **facts)

    async def explain(self, request: Request) -> Response:
        """`GET /explain?what=`: show why a push did, or did not, run, by an id, a commit or a URL."""
        what = request.query_params.get("what", "")
        return await self._explained(await self.deliveries.explained(what), what=what)

    async def _explained(self, items: Sequence[ExplainedView], *, what: str) -> Response:
        """Render deliveries in a thread, because even a part of a large delivery takes long to render."""
        return await API.run(
            self.renderer.page,
            "explained.html",
            items=[Explanation.of(delivery) for delivery in items],
            what=what,
        )

    async def search(self, request: Request) -> Response:
        """`GET /search?q=`: search everything; redirect to what an id, a commit or a URL refers to."""
        text = request.query_params.get("q", "").strip()
        if not text or len(text) > _MAX_SEARCH:
            raise Invalid(
                f"q: give a name, a ref, a person, a commit, an id or a URL, up to {_MAX_SEARCH} characters"
            )
        if _EXACT.fullmatch(text):
            try:
                await self.deliveries.explained(text)
            except NotFound as error:
                return await self._found(request, text, reason=str(error))
            return self.renderer.redirect(f"/explain?{urlencode({'what': text})}")
        return await self._found(request, text, reason=None)

    async def _found(self, request: Request, text: str, *, reason: str | None) -> Response:
        query = _with_query(request, {"q": text, "limit": str(_MAX_FOUND)})
        return self.renderer.page(
            "search.html",
            text=text,
            reason=reason,
            connections=await self.connections.list_connections(query),
            deliveries=await self.deliveries.list_deliveries(query),
            executions=await self.executions.list_executions(query),
        )


def _with_query(request: Request, query: Mapping[str, str]) -> Request:
    """Return a request to an endpoint of the API with these query parameters."""
    return Request({**request.scope, "query_string": urlencode(query).encode()})


def _minute(text: str, name: str) -> str:
    """Return an instant in UTC, as an input for date and time takes it."""
    instant = moment(text, name)
    return "" if instant is None else instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M")
