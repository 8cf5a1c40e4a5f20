"""The pages of the dashboard: the records of the REST API, for people who have signed in."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from gateway.api.auth import AdminToken, WrongToken
from gateway.api.connections import Connections
from gateway.api.endpoints import Answering
from gateway.api.identities import Identities
from gateway.api.notification_channels import NotificationChannels
from gateway.api.query import refuse_nul
from gateway.api.registrations import Registrations, RegistrationView
from gateway.api.sources import Sources
from gateway.dashboard.api_pages import ApiPages
from gateway.dashboard.app_pages import AppPages
from gateway.dashboard.contents import newest, refused
from gateway.dashboard.error_pages import ErrorPages, is_for_browsers
from gateway.dashboard.forms import read_form
from gateway.dashboard.list_pages import ListPages
from gateway.dashboard.overview import Overview
from gateway.dashboard.record_pages import RecordPages
from gateway.dashboard.rendering import STATIC, Renderer
from gateway.dashboard.routes import PageRoute, inside
from gateway.dashboard.sessions import Sessions
from gateway.errors import NotFound, PushgateError
from gateway.worker.connection_health import warn_before

Page = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """The handlers of the pages; `more` are those of other modules."""

    connections: Connections
    identities: Identities
    channels: NotificationChannels
    registrations: Registrations
    sources: Sources
    apps: AppPages
    overview: Overview
    apis: ApiPages
    lists: ListPages
    records: RecordPages
    more: Sequence[PageRoute]
    sessions: Sessions
    renderer: Renderer
    errors: ErrorPages
    token: AdminToken

    def routes(self) -> list[BaseRoute]:
        """Return the routes; those for users who have not signed in come last."""
        offered = [
            *self.identities.operations(),
            *self.channels.operations(),
            *self.sources.operations(),
        ]
        api = {operation.path: operation.query for operation in offered if operation.method == "GET"}
        registrations = self.registrations
        table: list[PageRoute] = [
            # They begin with words such as /sources/new, which are no ids.
            *self.more,
            ("/", "GET", self.overview.show),
            ("/connections/{id}/register-webhook", "POST", self._action(registrations.register_webhook)),
            ("/connections/{id}/check-webhook", "POST", self._action(registrations.check_webhook)),
            ("/connections/{id}/remove-webhook", "POST", self._action(registrations.remove_webhook)),
            ("/connections/{id}/redeliver", "POST", self._action(registrations.redeliver)),
            ("/sources", "GET", self.lists.filtered(self.list_sources, api["/sources"])),
            (
                "/sources/{id}",
                "GET",
                self.lists.filtered(self.show_source, api["/sources/{id}/repositories"]),
            ),
            ("/sources/{id}/list", "POST", self._action(self.sources.list_source)),
            ("/sources/{id}/decide", "POST", self.decide),
            ("/sources/{id}/app", "GET", self.apps.show),
            ("/sources/{id}/app/list", "POST", self._action(self.sources.list_source)),
            ("/sources/{id}/register-webhook", "POST", self._action(registrations.register_source_webhook)),
            ("/sources/{id}/check-webhook", "POST", self._action(registrations.check_source_webhook)),
            ("/sources/{id}/remove-webhook", "POST", self._action(registrations.remove_source_webhook)),
            ("/sources/{id}/redeliver", "POST", self._action(registrations.redeliver_to_source)),
            ("/identities", "GET", self.lists.filtered(self.list_identities, api["/identities"])),
            ("/notifications", "GET", self.lists.filtered(self.list_channels, api["/notification-channels"])),
            *self.lists.table(),
            *self.records.table(),
            *self.apis.table(),
        ]
        return [
            *(Route(path, self._signed_in(page), methods=[method]) for path, method, page in table),
            Route("/sign-in", self._with_errors(self.sign_in), methods=["POST"]),
            Route("/sign-out", self._with_errors(self.sign_out), methods=["POST"]),
            # The URL in the address bar after a refused token.
            Route("/sign-in", self._with_errors(self.begin), methods=["GET"]),
            Route("/docs/errors", self._with_errors(self.apis.show_errors), methods=["GET"]),
            # GitHub's redirect may come without a session.
            Route("/sources/{id}/app/created", self._with_errors(self.apps.created), methods=["GET"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]

    async def list_identities(self, request: Request) -> Response:
        """`GET /identities`: list identities, without their secrets."""
        page = await self.identities.list_identities(request)
        return self.renderer.page(
            "identities.html", page=page, query=dict(request.query_params), warn_before=warn_before
        )

    async def list_channels(self, request: Request) -> Response:
        """`GET /notifications`: list notification channels, without their secrets."""
        page = await self.channels.list_channels(request)
        return self.renderer.page("notifications.html", page=page, query=dict(request.query_params))

    async def list_sources(self, request: Request) -> Response:
        """`GET /sources`: list sources."""
        page = await self.sources.list_sources(request)
        return self.renderer.page("sources.html", page=page, query=dict(request.query_params))

    async def show_source(self, request: Request) -> Response:
        """`GET /sources/{id}`: show a source, its repositories, and the deliveries without a connection."""
        shown = await self.sources.get_source(request)
        page = await self.sources.list_source_repositories(request)
        database = self.connections.database
        return self.renderer.page(
            "source.html",
            source=shown,
            page=page,
            query=dict(request.query_params),
            deliveries=await database.read(newest, connection=shown.id),
            refused=await database.read(refused, connection=shown.id),
            webhook=await _known(self.registrations.get_source_webhook, request),
            can_register=shown.identity is not None,
        )

    async def decide(self, request: Request) -> Response:
        """`POST /sources/{id}/decide?repository=`: let the rules decide again about a repository."""
        request.path_params["repository"] = request.query_params.get("repository", "")
        return await self._action(self.sources.decide_source_repository)(request)

    async def sign_in(self, request: Request) -> Response:
        """`POST /sign-in`: begin a session, and redirect to the page that was requested."""
        form = await read_form(request)
        target = inside(form.get("next", ""))
        try:
            self.token.check(request, form.get("token", "").strip())
        except WrongToken:
            return self._sign_in_page(request, target, is_refused=True)
        answer = self.renderer.redirect(target)
        self.sessions.begin(answer, now=datetime.now(UTC))
        return answer

    async def begin(self, _request: Request) -> Response:
        """`GET /sign-in`: redirect to the overview, which shows the sign-in form."""
        return self.renderer.redirect("/")

    async def sign_out(self, _request: Request) -> Response:
        """`POST /sign-out`: delete the session cookie."""
        answer = self.renderer.redirect("/")
        self.sessions.end(answer)
        return answer

    def _action(self, endpoint: Answering) -> Page:
        """Return the page that calls an endpoint of the API, and redirects to the page of its record."""

        async def done(request: Request) -> Response:
            await endpoint(request)
            return self.renderer.redirect(request.url.path.rpartition("/")[0])

        return done

    def _signed_in(self, page: Page) -> Page:
        """Return the page with a check of the session; without a session the sign-in form is shown."""

        async def checked(request: Request) -> Response:
            if self.sessions.holds(request, now=datetime.now(UTC)):
                try:
                    return await page(request)
                finally:
                    # The next page must show what the user has done.
                    if request.method == "POST":
                        self.overview.forget()
            query = f"?{request.url.query}" if request.url.query else ""
            path = request.url.path
            # After the sign-in the page of the record is shown; the user repeats the action there.
            target = f"{path}{query}" if request.method == "GET" else path.rpartition("/")[0]
            return self._sign_in_page(request, target, is_refused=False)

        return self._with_errors(checked)

    def _with_errors(self, page: Page) -> Page:
        """Return the page, which refuses forms of other sites (CSRF) and shows errors as pages."""

        async def answered(request: Request) -> Response:
            # The script that refreshes a page must not take the message from the page that is to show it.
            if not is_for_browsers(request):
                return await self._answered(request, page)
            flashes = self.renderer.flashes
            with flashes.shown(request, now=datetime.now(UTC)):
                answer = await self._answered(request, page)
            if HTTPStatus(answer.status_code) is not HTTPStatus.SEE_OTHER:
                flashes.forget(request, answer)
            return answer

        return answered

    async def _answered(self, request: Request, page: Page) -> Response:
        if request.method == "POST" and not self.sessions.comes_from_here(request):
            return self.errors.failed(403, "Refused", "another site sent this form: nothing was changed")
        try:
            refuse_nul(request)
            return await page(request)
        except PushgateError as error:
            return self.errors.of(error)

    def _sign_in_page(self, request: Request, target: str, *, is_refused: bool) -> Response:
        elsewhere = None if self.sessions.would_keep_cookie(request) else self.renderer.base_url
        return self.renderer.page(
            "sign-in.html",
            401,
            next=target,
            is_refused=is_refused,
            has_expired=self.sessions.has_cookie(request) and not is_refused,
            elsewhere=elsewhere,
        )


async def _known(
    endpoint: Callable[[Request], Awaitable[RegistrationView]], request: Request
) -> RegistrationView | None:
    """Return the answer of the API, or None if it has nothing there."""
    try:
        return await endpoint(request)
    except NotFound:
        return None
