"""The pages that connect a repository: from its URL to its first delivery.

What has been done is stored with each step, so a user can leave at any of them: the page of the setup, to
which the connection's page links until a delivery has arrived, shows what is left to do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.connection_views import ConnectionView
from gateway.api.connections import Connections
from gateway.api.identities import Identities, IdentityView
from gateway.api.registrations import Registrations, RegistrationView
from gateway.api.views import DeliveryView
from gateway.dashboard.api_forms import CHECKED, Filled, api_request
from gateway.dashboard.connection_forms import FIRST, connect_form
from gateway.dashboard.contents import newest, refused
from gateway.dashboard.forms import read_large_form
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.routes import PageRoute
from gateway.dashboard.secret_page import secret_page
from gateway.errors import NotFound, PushgateError
from gateway.fetch.credentials import take_login
from gateway.provider_apis.apis import APIS
from providers import PROVIDERS
from providers.recognition import likely_provider

# Together less than what proxies wait for an answer.
_WAIT_SECONDS = "10"
_MAX_IDENTITIES = "200"
# The fields whose values may be part of an address: none is secret.
_IN_ADDRESSES = ("url", "provider", "project", "name", "identity", "yaml_path")
_DEFAULTS: Mapping[str, Sequence[str]] = {
    "yaml_path": ["valohai.yaml"],
    "package_format": ["tar.gz"],
    "statuses": [CHECKED],
    "register": [CHECKED],
}
_LOGIN_LEFT_OUT = (
    "The password was left out of the URL, where it would be shown: enter it below. It is stored encrypted."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What is done and what is left to do until pushes arrive. `arrived` is the newest webhook's delivery."""

    connection: ConnectionView
    webhook: RegistrationView | None
    arrived: DeliveryView | None
    refused: Sequence[DeliveryView]

    @property
    def is_registered(self) -> bool:
        """Whether Pushgate has registered the webhook."""
        return self.webhook is not None and self.webhook.webhook is not None

    @property
    def can_register(self) -> bool:
        """Whether Pushgate can register it: the provider has an API, and the connection an identity."""
        return can_register(self.connection)

    @property
    def is_waiting(self) -> bool:
        """Whether the page may change by itself."""
        return self.arrived is None or self.connection.remote.readable is None


def can_register(connection: ConnectionView) -> bool:
    """Return whether Pushgate can register the webhook of a connection."""
    return connection.identity is not None and connection.source is None and connection.provider in APIS


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectPages:
    """The handlers of the pages."""

    connections: Connections
    identities: Identities
    registrations: Registrations
    renderer: Renderer

    def routes(self) -> list[PageRoute]:
        """Return the pages and their paths."""
        path = "/connections/{id}/setup"
        return [
            ("/connect", "GET", self.begin),
            ("/connect", "POST", self.connect),
            (path, "GET", self.show_setup),
            (f"{path}/check", "POST", self.check),
            (f"{path}/register", "POST", self.register),
        ]

    async def begin(self, request: Request) -> Response:
        """`GET /connect?url=&provider=&project=&name=&identity=`: show the first step, or the next."""
        given = {name: [request.query_params[name]] for name in _IN_ADDRESSES if name in request.query_params}
        if "url" not in given:
            return self.renderer.page("connect.html", form=FIRST.filled(given), known=None)
        return await self._next_step(request, {**_DEFAULTS, **given})

    async def connect(self, request: Request) -> Response:
        """`POST /connect`: go to the next step, or to a new identity, or connect the repository."""
        values = await read_large_form(request)
        match values.get("step"):
            case ["connect"]:
                return await self._connected(request, values)
            case ["identity"]:
                given = FIRST.filled(values)
                kept = {name: given.text(name) for name in _IN_ADDRESSES if given.text(name)}
                kept["url"] = take_login(given.text("url"), "")[0]
                back = f"/connect?{urlencode(kept)}"
                query = urlencode({"next": back, "provider": given.text("provider")})
                return self.renderer.redirect(f"/identities/new?{query}")
            case ["back"]:
                return self.renderer.page("connect.html", form=_bare(FIRST.filled(values)), known=None)
            case _:
                return await self._next_step(request, {**_DEFAULTS, **values})

    async def _next_step(self, request: Request, values: Mapping[str, Sequence[str]]) -> Response:
        """Show the second step, or the first again if the URL is missing or shows no provider."""
        first = FIRST.filled(values)
        known = await self._identities(request)
        url = first.text("url")
        if not url:
            first.problems["url"] = ["It is required."]
        provider = first.text("provider") or likely_provider(url, {one.host: one.provider for one in known})
        if url and provider not in PROVIDERS:
            first.problems["provider"] = ["Nothing in the URL shows the provider: choose it."]
        if first.is_wrong or provider is None:
            return self.renderer.page("connect.html", 422, form=_bare(first), known=None)
        return self._second_step({**values, "provider": [provider]}, known)

    def _second_step(self, values: Mapping[str, Sequence[str]], known: Sequence[IdentityView]) -> Response:
        first = FIRST.filled(values)
        bare, login = take_login(first.text("url"), first.text("provider"))
        form = _second_form(values, known)
        if login is not None:
            shown = {**values, "url": [bare], "credentials.user": [login.user]}
            form = Filled(form=form.form, values=shown, general=[_LOGIN_LEFT_OUT])
        return self._page(form, 200)

    async def _connected(self, request: Request, values: Mapping[str, Sequence[str]]) -> Response:
        """Connect the repository, and register its webhook if that is wanted and possible."""
        form = _second_form(values, await self._identities(request))
        body = form.body()
        made = await form.send(self.connections.create_connection, request, body, wait=_WAIT_SECONDS)
        if made is None:
            return self._page(_bare(form), 422)
        failure = None
        if form.text("register") == CHECKED and can_register(made):
            failure = await self._failure_to_register(api_request(request, of=made.id, wait=_WAIT_SECONDS))
            if failure is None:
                flash = f"{made.name} is connected, and its webhook is registered at the provider."
                return self.renderer.redirect(f"/connections/{made.id}/setup", flash=flash)
        return secret_page(
            self.renderer,
            made,
            above=[("Connections", "/connections"), (made.name, f"/connections/{made.id}")],
            next_path=f"/connections/{made.id}/setup",
            failure=failure,
            is_new=True,
            remote=made.remote,
            deploy_key=made.deploy_key,
        )

    async def show_setup(self, request: Request) -> Response:
        """`GET /connections/{id}/setup`: show what is done, and what is left until the first delivery."""
        connection = await self.connections.get_connection(request)
        database = self.connections.database
        found = await database.read(newest, connection=connection.id)
        setup = Setup(
            connection=connection,
            webhook=await known_webhook(self.registrations, request),
            arrived=next((one for one in found if one.source == "webhook"), None),
            refused=await database.read(refused, connection=connection.id),
        )
        return self.renderer.page("setup.html", setup=setup, guide=PROVIDERS[connection.provider].SETUP)

    async def check(self, request: Request) -> Response:
        """`POST /connections/{id}/setup/check`: read the remote again, and show the result."""
        await self.connections.check_connection(api_request(request, wait=_WAIT_SECONDS))
        return self.renderer.redirect(f"/connections/{request.path_params['id']}/setup")

    async def register(self, request: Request) -> Response:
        """`POST /connections/{id}/setup/register`: register the webhook, and show the result."""
        failure = await self._failure_to_register(api_request(request, wait=_WAIT_SECONDS))
        path = f"/connections/{request.path_params['id']}/setup"
        if failure is None:
            return self.renderer.redirect(path, flash="The webhook is registered at the provider.")
        return self.renderer.redirect(path, flash=f"The webhook is not registered: {failure}.", kind="bad")

    async def _failure_to_register(self, request: Request) -> str | None:
        """Register a webhook; return why that failed, or None."""
        try:
            webhook = await self.registrations.register_webhook(request)
        except PushgateError as error:
            return str(error)
        if webhook.reason is None and webhook.webhook is None:
            return "no worker has done it yet"
        return webhook.reason

    async def _identities(self, request: Request) -> Sequence[IdentityView]:
        page = await self.identities.list_identities(api_request(request, limit=_MAX_IDENTITIES))
        return page.items

    def _page(self, form: Filled, status: int) -> Response:
        provider = form.text("provider")
        facts: dict[str, Any] = {"known": provider, "can_register": provider in APIS}
        return self.renderer.page("connect.html", status, form=form, **facts)


async def known_webhook(registrations: Registrations, request: Request) -> RegistrationView | None:
    """Return what is known of the webhook at the provider, or None if none was registered."""
    try:
        return await registrations.get_webhook(request)
    except NotFound:
        return None


def _second_form(values: Mapping[str, Sequence[str]], known: Sequence[IdentityView]) -> Filled:
    first = FIRST.filled(values)
    provider = first.text("provider")
    names = [one.name for one in known if one.provider == provider]
    return connect_form(first.text("url"), provider, names).filled(values)


def _bare(form: Filled) -> Filled:
    """Return a form without the password that its URL may contain."""
    bare, login = take_login(form.text("url"), form.text("provider"))
    if login is None:
        return form
    values = {**form.values, "url": [bare]}
    general = [*form.general, _LOGIN_LEFT_OUT]
    return Filled(form=form.form, values=values, problems=form.problems, general=general)
