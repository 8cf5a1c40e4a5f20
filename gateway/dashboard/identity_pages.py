"""The pages of identities: what Pushgate is at the providers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.identities import Identities, IdentityView
from gateway.api.identity_schemas import IdentityChange, NewIdentity
from gateway.dashboard.api_forms import Filled, Form, FormField, api_request, version_of
from gateway.dashboard.connection_forms import provider_field
from gateway.dashboard.forms import read_large_form
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.routes import PageRoute, inside
from gateway.errors import Invalid
from gateway.worker.connection_health import warn_before

_WAIT_SECONDS = "10"
_CREDENTIALS = {
    "": "none",
    "client-secret": "client secret",
    "certificate": "certificate",
    "workload-identity": "workload identity of the worker's pod",
    "managed-identity": "managed identity of the worker's machine",
}
_SETTINGS = (
    FormField(name="settings.app_id", label="App ID", example="123456"),
    FormField(name="settings.credential", label="Credential", kind="choice", choices=_CREDENTIALS),
    FormField(name="settings.tenant", label="Tenant"),
    FormField(name="settings.client_id", label="Client ID"),
)
_SECRETS = (
    FormField(name="token", label="Access token", kind="secret"),
    FormField(name="private_key", label="Private key", kind="long-secret"),
    FormField(name="client_secret", label="Client secret", kind="secret"),
    FormField(name="certificate", label="Certificate and its key", kind="long-secret"),
)
_ROTATES = FormField(
    name="rotates",
    label="Replace the token before it ends",
    kind="choice",
    choices={"": "by default", "true": "yes", "false": "no"},
)
NEW = Form(
    model=NewIdentity,
    fields=(
        FormField(name="name", label="Name", required=True, example="acme-bot", empty="keep"),
        provider_field("choose a provider"),
        FormField(
            name="kind",
            label="Kind",
            kind="choice",
            choices={"token": "access token", "github-app": "GitHub App", "entra": "Microsoft Entra"},
            help="An access token of the provider; a GitHub App; or, for Azure DevOps Services, an"
            " application or a managed identity in Microsoft Entra.",
        ),
        *_SETTINGS,
        *_SECRETS,
        FormField(name="user", label="User"),
        FormField(name="api_url", label="URL of the API", example="https://git.example.com/api/v4"),
        FormField(name="expires_at", label="Expires (UTC)", kind="moment"),
        _ROTATES,
    ),
    places={"settings": "settings.app_id"},
)
"""The form of a new identity."""

CHANGE = Form(
    model=IdentityChange,
    fields=(
        FormField(name="name", label="Name", required=True, empty="keep"),
        *_SETTINGS,
        *_SECRETS,
        FormField(name="user", label="User", empty="null"),
        FormField(name="api_url", label="URL of the API", empty="null"),
        FormField(name="expires_at", label="Expires (UTC)", kind="moment", empty="null"),
        _ROTATES,
    ),
    places={"settings": "settings.app_id"},
)
"""The form of the changes of an identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityPages:
    """The handlers of the pages."""

    identities: Identities
    renderer: Renderer

    def routes(self) -> list[PageRoute]:
        """Return the pages and their paths."""
        path = "/identities/{id}"
        return [
            ("/identities/new", "GET", self.new),
            ("/identities/new", "POST", self.create),
            (path, "GET", self.show),
            (f"{path}/check", "POST", self.check),
            (f"{path}/edit", "GET", self.edit),
            (f"{path}/edit", "POST", self.change),
            (f"{path}/delete", "GET", self.confirm),
            (f"{path}/delete", "POST", self.delete),
        ]

    async def new(self, request: Request) -> Response:
        """`GET /identities/new?provider=&next=`: show the form of a new identity."""
        provider = request.query_params.get("provider", "")
        return self._new_page(request, NEW.filled({"provider": [provider], "kind": ["token"]}))

    async def create(self, request: Request) -> Response:
        """`POST /identities/new?next=`: add an identity, and go on to `next` with its name."""
        form = NEW.filled(await read_large_form(request))
        made = await form.send(self.identities.create_identity, request, form.body())
        if made is None:
            return self._new_page(request, form)
        target = inside(request.query_params.get("next", ""), default=f"/identities/{made.id}")
        if "next" in request.query_params:
            target += ("&" if "?" in target else "?") + urlencode({"identity": made.name})
        return self.renderer.redirect(target, flash=f"The identity {made.name} is added.")

    async def show(self, request: Request) -> Response:
        """`GET /identities/{id}`: show an identity without its secret."""
        shown = await self.identities.get_identity(request)
        return self.renderer.page("identity.html", identity=shown, warn_before=warn_before)

    async def check(self, request: Request) -> Response:
        """`POST /identities/{id}/check`: check whether the provider accepts it, and show the result."""
        found = await self.identities.check_identity(api_request(request, wait=_WAIT_SECONDS))
        path = f"/identities/{found.id}"
        if found.reason is None:
            return self.renderer.redirect(path, flash=f"{found.host} accepts it.")
        return self.renderer.redirect(path, flash=f"It does not work: {found.reason}.", kind="bad")

    async def edit(self, request: Request) -> Response:
        """`GET /identities/{id}/edit`: show an identity in a form."""
        shown = await self.identities.get_identity(request)
        return self._edit_page(shown, CHANGE.of(_record(shown)))

    async def change(self, request: Request) -> Response:
        """`POST /identities/{id}/edit`: change an identity; empty secrets stay as they are."""
        shown = await self.identities.get_identity(request)
        form = CHANGE.filled(await read_large_form(request))
        body = form.body()
        # An end that has passed could not be sent again.
        if form.values.get("expires_at") == CHANGE.of(_record(shown)).values["expires_at"]:
            body.pop("expires_at", None)
        changed = await form.send(self.identities.update_identity, request, body)
        if changed is None:
            return self._edit_page(shown, form)
        flash = f"The identity {changed.name} is changed."
        return self.renderer.redirect(f"/identities/{shown.id}", flash=flash)

    async def confirm(self, request: Request) -> Response:
        """`GET /identities/{id}/delete`: show what a deletion removes."""
        shown = await self.identities.get_identity(request)
        return self._confirmation(shown, refusal=None)

    async def delete(self, request: Request) -> Response:
        """`POST /identities/{id}/delete`: delete an identity that nothing uses."""
        shown = await self.identities.get_identity(request)
        try:
            await self.identities.delete_identity(request)
        except Invalid as error:
            return self._confirmation(shown, refusal=str(error))
        flash = f"The identity {shown.name} is deleted. Revoke its secret at the provider, too."
        return self.renderer.redirect("/identities", flash=flash)

    def _new_page(self, request: Request, form: Filled) -> Response:
        path = "/identities/new"
        after = request.query_params.get("next")
        facts: dict[str, Any] = {
            "title": "Add an identity",
            "target": f"{path}?{urlencode({'next': after})}" if after else path,
            "above": [("Identities", "/identities")],
            "back": inside(after or "", default="/identities"),
        }
        return self._form_page(form, kind=None, version="", **facts)

    def _edit_page(self, shown: IdentityView, form: Filled) -> Response:
        path = f"/identities/{shown.id}"
        facts: dict[str, Any] = {
            "title": f"Edit {shown.name}",
            "target": f"{path}/edit",
            "above": [("Identities", "/identities"), (shown.name, path)],
            "back": path,
        }
        return self._form_page(
            form, kind=shown.kind, version=form.text("version") or version_of(shown), **facts
        )

    def _form_page(self, form: Filled, **facts: Any) -> Response:
        return self.renderer.page("identity-form.html", 422 if form.is_wrong else 200, form=form, **facts)

    def _confirmation(self, shown: IdentityView, *, refusal: str | None) -> Response:
        path = f"/identities/{shown.id}"
        losses: Sequence[str] = (
            f"Its stored secret for {shown.host or 'the provider'} is deleted: revoke it there, too.",
            "Webhooks and verdicts on commits that it has made at the provider stay there.",
        )
        return self.renderer.page(
            "delete.html",
            200 if refusal is None else 409,
            what=f"the identity {shown.name}",
            above=[("Identities", "/identities"), (shown.name, path)],
            section_of="identities",
            target=f"{path}/delete",
            back=path,
            losses=losses,
            refusal=refusal,
        )


def _record(shown: IdentityView) -> Mapping[str, Any]:
    """Return an identity as its form shows it."""
    return {**shown.model_dump(), "rotates": None}
