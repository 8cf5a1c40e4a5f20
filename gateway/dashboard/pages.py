"""The dashboard: what the REST API tells, as pages for people who have signed in."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

import sqlalchemy
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from gateway.api.auth import AdminToken, WrongToken
from gateway.api.connections import Api
from gateway.api.deliveries import Deliveries
from gateway.api.endpoints import (
    headers_of_refusal,
    on_http_error,
    retry_after,
    status_of,
)
from gateway.api.executions import Executions
from gateway.api.executions import views as execution_views
from gateway.api.query import refuse_nul, refuse_unknown
from gateway.api.views import DeliveryView, ExecutionView, ExplainedView, UpdateView
from gateway.dashboard.rendering import STATIC, Renderer
from gateway.dashboard.sessions import Sessions
from gateway.errors import Invalid, PushgateError
from gateway.intake.body import BodyReader
from gateway.store import deliveries, executions, outages, reconciliations, work_queue
from gateway.threads import API

Page = Callable[[Request], Awaitable[Response]]

# The newest deliveries and executions on the overview.
_FEW = 10
# The ref updates of a delivery on its page.
_MANY = 100
_FIELDS = 10
# Anybody may send one to sign in, and it is decoded before anything is proven.
_forms = BodyReader(limit=32 * 1024)
_NO_PAGE = "There is no page at this address."


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """The pages and what they work with."""

    api: Api
    deliveries: Deliveries
    executions: Executions
    sessions: Sessions
    renderer: Renderer
    token: AdminToken
    has_broker: bool

    def routes(self) -> list[BaseRoute]:
        """Return the routes; what tells of records, or does something, is for those who have signed in."""
        offered = [
            *self.api.operations(),
            *self.deliveries.operations(),
            *self.executions.operations(),
        ]
        api = {one.path: one.query for one in offered if one.method == "GET"}
        table: list[tuple[str, str, Page]] = [
            ("/", "GET", self.overview),
            ("/connections", "GET", self._filtered(self.list_connections, api["/connections"])),
            ("/connections/{id}", "GET", self.show_connection),
            ("/connections/{id}/fetch", "POST", self.fetch),
            ("/deliveries", "GET", self._filtered(self.list_deliveries, api["/deliveries"])),
            ("/deliveries/{id}", "GET", self.show_delivery),
            ("/deliveries/{id}/replay", "POST", self.replay),
            ("/executions", "GET", self._filtered(self.list_executions, api["/executions"])),
            ("/executions/{id}", "GET", self.show_execution),
            ("/executions/{id}/drop", "POST", self.drop),
            ("/explain", "GET", self._filtered(self.explain, api["/explain"])),
        ]
        return [
            *(Route(path, self._signed_in(page), methods=[method]) for path, method, page in table),
            Route("/sign-in", self._told(self.sign_in), methods=["POST"]),
            Route("/sign-out", self._told(self.sign_out), methods=["POST"]),
            # Where the address bar stands after a token that was refused.
            Route("/sign-in", self._told(self.begin), methods=["GET"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    async def overview(self, _request: Request) -> Response:
        """`GET /`: what waits where, what is broken, what is new."""
        found = await self.api.database.read(_overview, has_broker=self.has_broker)
        return self.renderer.page("overview.html", has_broker=self.has_broker, **found)

    async def list_connections(self, request: Request) -> Response:
        """`GET /connections`: with the query of the API."""
        page = await self.api.list_connections(request)
        return self.renderer.page("connections.html", page=page, query=dict(request.query_params))

    async def show_connection(self, request: Request) -> Response:
        """`GET /connections/{id}`: how it is set, how its remote answers, and its newest deliveries."""
        which = request.path_params["id"]
        shown = await self.api.show_connection(request)
        views = await self.api.database.read(_newest, connection=which)
        return self.renderer.page("connection.html", connection=shown, deliveries=views)

    async def fetch(self, request: Request) -> Response:
        """`POST /connections/{id}/fetch`: the button that nobody has to press any more."""
        await self.api.fetch(request)
        return self.renderer.redirect(f"/connections/{request.path_params['id']}")

    async def list_deliveries(self, request: Request) -> Response:
        """`GET /deliveries`: with the query of the API."""
        page = await self.deliveries.list_deliveries(request)
        return await API.run(
            self.renderer.page, "deliveries.html", page=page, query=dict(request.query_params)
        )

    async def show_delivery(self, request: Request) -> Response:
        """`GET /deliveries/{id}`: its whole way."""
        explained = await self.deliveries.explained(request.path_params["id"])
        return await self._explained(explained, what=None)

    async def replay(self, request: Request) -> Response:
        """`POST /deliveries/{id}/replay`."""
        await self.deliveries.replay(request)
        return self.renderer.redirect(f"/deliveries/{request.path_params['id']}")

    async def list_executions(self, request: Request) -> Response:
        """`GET /executions`: with the query of the API."""
        page = await self.executions.list_executions(request)
        return self.renderer.page("executions.html", page=page, query=dict(request.query_params))

    async def show_execution(self, request: Request) -> Response:
        """`GET /executions/{id}`: with the message that the runners get."""
        return self.renderer.page("execution.html", execution=await self.executions.show_execution(request))

    async def drop(self, request: Request) -> Response:
        """`POST /executions/{id}/drop`."""
        await self.executions.drop(request)
        return self.renderer.redirect(f"/executions/{request.path_params['id']}")

    async def explain(self, request: Request) -> Response:
        """`GET /explain?what=`: why a push did, or did not, run, by whatever somebody has at hand."""
        what = request.query_params.get("what", "")
        return await self._explained(await self.deliveries.explained(what), what=what)

    async def _explained(self, items: Sequence[ExplainedView], *, what: str | None) -> Response:
        """Show deliveries with their ways; in a thread, since of a large one even a part takes its time."""
        return await API.run(
            self.renderer.page, "explained.html", items=[_Way.of(delivery) for delivery in items], what=what
        )

    async def sign_in(self, request: Request) -> Response:
        """`POST /sign-in`: with the admin token, and on to where somebody wanted to go."""
        form = await _form(request)
        further = _inside(form.get("next", ""))
        try:
            self.token.check(request, form.get("token", "").strip())
        except WrongToken:
            return self._asked_to_sign_in(request, further, is_refused=True)
        answer = self.renderer.redirect(further)
        self.sessions.begin(answer, now=datetime.now(UTC))
        return answer

    async def begin(self, _request: Request) -> Response:
        """`GET /sign-in`: on to the overview, which asks for it."""
        return self.renderer.redirect("/")

    async def sign_out(self, _request: Request) -> Response:
        """`POST /sign-out`."""
        answer = self.renderer.redirect("/")
        self.sessions.end(answer)
        return answer

    async def on_http_error(self, request: Request, error: Exception) -> Response:
        """Answer what the routing refuses: to a browser as a page, to programs as JSON."""
        if not (isinstance(error, HTTPException) and _is_for_browsers(request)):
            return await on_http_error(request, error)
        detail = _NO_PAGE if error.status_code == HTTPStatus.NOT_FOUND else error.detail
        answer = self._failed(error.status_code, error.detail.lower(), detail)
        answer.headers.update(headers_of_refusal(request, error))
        return answer

    def _filtered(self, page: Page, query: Sequence[str]) -> Page:
        """Return the page, which refuses filters that it does not know."""

        async def checked(request: Request) -> Response:
            refuse_unknown(request, query)
            return await page(request)

        return checked

    def _signed_in(self, page: Page) -> Page:
        """Return the page, for those who have signed in; all others are asked to."""

        async def checked(request: Request) -> Response:
            if self.sessions.holds(request, now=datetime.now(UTC)):
                return await page(request)
            query = f"?{request.url.query}" if request.url.query else ""
            path = request.url.path
            # What was to be done is shown first: it is done when it is asked for again.
            wanted = f"{path}{query}" if request.method == "GET" else path.rpartition("/")[0]
            return self._asked_to_sign_in(request, wanted, is_refused=False)

        return self._told(checked)

    def _told(self, page: Page) -> Page:
        """Return the page, closed to what another site sends; what goes wrong is told as a page, too."""

        async def answered(request: Request) -> Response:
            if request.method == "POST" and not self.sessions.comes_from_here(request):
                return self._failed(
                    403, "not from here", "a page of another site has sent this: nothing was done"
                )
            try:
                refuse_nul(request)
                return await page(request)
            except PushgateError as error:
                answer = self._failed(*status_of(error), str(error))
                answer.headers.update(retry_after(error))
                return answer

        return answered

    def _asked_to_sign_in(self, request: Request, wanted: str, *, is_refused: bool) -> Response:
        elsewhere = None if self.sessions.comes_by(request) else self.renderer.base_url
        return self.renderer.page(
            "sign-in.html", 401, next=wanted, is_refused=is_refused, elsewhere=elsewhere
        )

    def _failed(self, status: int, title: str, detail: str) -> Response:
        return self.renderer.page("error.html", status, title=title, detail=detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A delivery as its page shows it: of thousands of ref updates the first, and how many more there are.

    `requests` are the execution requests of each by its id.
    """

    delivery: ExplainedView
    updates: Sequence[UpdateView]
    more: int
    requests: Mapping[int, Sequence[ExecutionView]]

    @classmethod
    def of(cls, delivery: ExplainedView) -> "_Way":
        """Sort out what came of which ref update."""
        requests: dict[int, list[ExecutionView]] = {}
        for execution in delivery.executions:
            requests.setdefault(execution.ref_update, []).append(execution)
        updates = delivery.updates[:_MANY]
        return cls(
            delivery=delivery, updates=updates, more=len(delivery.updates) - len(updates), requests=requests
        )

    @property
    def is_unfinished(self) -> bool:
        """Whether something of it is still to come."""
        states = {one.state for one in self.delivery.updates} | {
            one.state for one in self.delivery.executions
        }
        return "pending" in states

    @property
    def can_be_replayed(self) -> bool:
        """Whether to plan it again would do anything."""
        has_ended = any(update.state in deliveries.REPLAYABLE for update in self.delivery.updates)
        return has_ended and not self.delivery.is_orphan


def _overview(conn: sqlalchemy.Connection, *, has_broker: bool) -> dict[str, Any]:
    planned, _ = executions.page(conn, connection=None, delivery=None, state=None, before=None, limit=_FEW)
    return {
        "backlog": work_queue.backlog(conn),
        "failing": reconciliations.failing(conn, limit=_FEW + 1),
        "few": _FEW,
        "deliveries": _newest(conn, connection=None),
        "executions": execution_views(conn, planned, has_broker=has_broker),
        "outages": outages.current(conn) if has_broker else (),
    }


def _newest(conn: sqlalchemy.Connection, connection: str | None) -> list[DeliveryView]:
    found = deliveries.page(conn, connection=connection, verdict=None, before=None, limit=_FEW)
    return [DeliveryView.of(delivery) for delivery in found]


def _is_for_browsers(request: Request) -> bool:
    """Return whether somebody looks at the answer: the door and the API answer JSON, whoever asks."""
    is_for_programs = request.url.path.startswith(("/api/", "/hooks/"))
    return not is_for_programs and "text/html" in request.headers.get("accept", "")


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form; of several with one name, the first. Raises `Invalid`."""
    body = await _forms.read(request.scope, request.receive)
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=_FIELDS)
    except ValueError:
        raise Invalid("the form has more fields than any of ours") from None
    return {name: values[0] for name, values in fields.items()}


def _inside(path: str) -> str:
    """Return a path of the dashboard as it is, and the overview's for what would lead elsewhere."""
    is_path = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_path else "/"
