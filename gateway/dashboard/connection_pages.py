"""The pages of a connection: what is known of it, its settings, its credentials, its secrets, and its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.connection_views import ConnectionView
from gateway.api.connections import Connections
from gateway.api.identities import Identities
from gateway.api.registrations import Registrations
from gateway.api.webhook_secrets import WebhookSecrets
from gateway.dashboard.api_forms import CHECKED, Filled, Values, api_request, version_of
from gateway.dashboard.connect_pages import can_register, known_webhook
from gateway.dashboard.connection_forms import CHANGE, access_form
from gateway.dashboard.contents import newest, refused
from gateway.dashboard.forms import read_large_form
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.routes import PageRoute
from gateway.dashboard.secret_page import SECRET, newest_secret, secret_page, secrets_page
from gateway.errors import PushgateError
from gateway.fetch.urls import is_ssh
from gateway.text.deletions import losses_of_connection

_WAIT_SECONDS = "10"
_MAX_IDENTITIES = "200"
# Objects of a connection: the fields that name one, and what an empty one means.
_OBJECTS: Mapping[str, Sequence[str]] = {"platform": ("url", "project"), "status_webhook": ("url", "secret")}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPages:
    """The handlers of the pages."""

    connections: Connections
    identities: Identities
    registrations: Registrations
    secrets: WebhookSecrets
    renderer: Renderer

    def routes(self) -> list[PageRoute]:
        """Return the pages and their paths."""
        path = "/connections/{id}"
        return [
            (path, "GET", self.show),
            (f"{path}/fetch", "POST", self.fetch),
            (f"{path}/edit", "GET", self.edit),
            (f"{path}/edit", "POST", self.change),
            (f"{path}/access", "GET", self.edit_access),
            (f"{path}/access", "POST", self.change_access),
            (f"{path}/secret", "GET", self.show_secrets),
            (f"{path}/secret", "POST", self.rotate),
            (f"{path}/secret/revoke", "POST", self.revoke),
            (f"{path}/forget-repository", "POST", self.forget_repository),
            (f"{path}/delete", "GET", self.confirm),
            (f"{path}/delete", "POST", self.delete),
        ]

    async def show(self, request: Request) -> Response:
        """`GET /connections/{id}`: show its settings, the state of its remote, and its newest deliveries."""
        shown = await self.connections.get_connection(request)
        database = self.connections.database
        deliveries = await database.read(newest, connection=shown.id)
        return self.renderer.page(
            "connection.html",
            connection=shown,
            deliveries=deliveries,
            refused=await database.read(refused, connection=shown.id),
            webhook=await known_webhook(self.registrations, request),
            can_register=can_register(shown),
            is_set_up=shown.source is not None or any(one.source == "webhook" for one in deliveries),
        )

    async def fetch(self, request: Request) -> Response:
        """`POST /connections/{id}/fetch`: reconcile now."""
        await self.connections.fetch_connection(request)
        return self._to(request, "Pushgate reads the repository now.")

    async def edit(self, request: Request) -> Response:
        """`GET /connections/{id}/edit`: show the settings in a form."""
        shown = await self.connections.get_connection(request)
        return self._edit_page(shown, CHANGE.of(shown.model_dump()))

    async def change(self, request: Request) -> Response:
        """`POST /connections/{id}/edit`: change the settings."""
        shown = await self.connections.get_connection(request)
        form = CHANGE.filled(await read_large_form(request))
        body = _without_empty(form, shown)
        changed = await form.send(self.connections.update_connection, request, body)
        if changed is None:
            return self._edit_page(shown, form)
        return self._to(request, f"The settings of {changed.name} are changed.")

    async def edit_access(self, request: Request) -> Response:
        """`GET /connections/{id}/access?identity=`: show what it signs in with, and what may replace that."""
        shown = await self.connections.get_connection(request)
        chosen = request.query_params.get("identity", shown.identity or "")
        form = await self._access_form(request, shown, {"identity": [chosen], "how": ["keep"]})
        return self._access_page(shown, form)

    async def change_access(self, request: Request) -> Response:
        """`POST /connections/{id}/access`: change the identity, and replace or delete the credentials."""
        shown = await self.connections.get_connection(request)
        form = await self._access_form(request, shown, await read_large_form(request))
        body = form.body()
        given = body.pop("credentials", {})
        match form.text("how"):
            case "give" | "keep" if given:
                body["credentials"] = given
            case "generate":
                body["credentials"] = {"deploy_key": True}
            case "delete":
                body["credentials"] = None
        if form.text("how") == "give" and not given:
            form.general.append("Nothing was entered for the new credentials.")
        changed = await form.send(self.connections.update_connection, request, body)
        if changed is None:
            return self._access_page(shown, form)
        flash = "The credentials are changed. Pushgate reads the repository with them now."
        if form.text("how") == "generate":
            flash = "A new deploy key is generated: add it to the repository."
        return self._to(request, flash)

    async def show_secrets(self, request: Request) -> Response:
        """`GET /connections/{id}/secret`: show when the valid secrets were used, and how to rotate."""
        shown = await self.connections.get_connection(request)
        return self._secrets_page(shown, SECRET.filled({}))

    async def rotate(self, request: Request) -> Response:
        """`POST /connections/{id}/secret`: set a new secret, and show it once.

        Where Pushgate has registered the webhook, it sets the secret there, too. A form that is sent twice,
        such as by a reload of the answer, does not rotate again.
        """
        shown = await self.connections.get_connection(request)
        form = SECRET.filled(await read_large_form(request))
        if form.text("newest") != newest_secret(shown):
            return self.renderer.redirect(
                f"/connections/{shown.id}/secret",
                flash="The secret was rotated meanwhile. Each new secret is shown only once.",
                kind="bad",
            )
        made = await form.send(self.connections.rotate_secret, request, form.body())
        if made is None:
            return self._secrets_page(shown, form)
        failure, is_registered = None, False
        webhook = await known_webhook(self.registrations, request)
        if can_register(shown) and webhook is not None and webhook.webhook is not None:
            failure = await self._failure_to_set(request)
            is_registered = failure is None
        return secret_page(
            self.renderer,
            made,
            above=[("Connections", "/connections"), (shown.name, f"/connections/{shown.id}")],
            next_path=f"/connections/{shown.id}",
            failure=failure,
            is_registered=is_registered,
            is_new=False,
        )

    async def revoke(self, request: Request) -> Response:
        """`POST /connections/{id}/secret/revoke`: revoke the previous secret."""
        await self.secrets.revoke_secret(request)
        return self._to(request, "The previous secret is revoked: only the newest is valid.")

    async def forget_repository(self, request: Request) -> Response:
        """`POST /connections/{id}/forget-repository`: accept the repository that has the URL now."""
        await self.connections.forget_repository(request)
        return self._to(request, "The next delivery sets the id of the repository.")

    async def confirm(self, request: Request) -> Response:
        """`GET /connections/{id}/delete`: show what a deletion removes, and what stays."""
        shown = await self.connections.get_connection(request)
        webhook = await known_webhook(self.registrations, request)
        path = f"/connections/{shown.id}"
        return self.renderer.page(
            "delete.html",
            what=f"the connection {shown.name}",
            above=[("Connections", "/connections"), (shown.name, path)],
            section_of="connections",
            target=f"{path}/delete",
            back=path,
            losses=losses_of_connection(
                url=shown.url,
                triggers=[trigger["name"] for trigger in shown.triggers],
                source=None if shown.source is None else shown.source.name,
                is_registered=webhook is not None and webhook.webhook is not None,
            ),
            refusal=None,
        )

    async def delete(self, request: Request) -> Response:
        """`POST /connections/{id}/delete`: delete it."""
        shown = await self.connections.get_connection(request)
        await self.connections.delete_connection(request)
        return self.renderer.redirect("/connections", flash=f"{shown.name} is deleted.")

    async def _failure_to_set(self, request: Request) -> str | None:
        """Set the newest secret at the provider; return why that failed, or None."""
        try:
            found = await self.registrations.register_webhook(api_request(request, wait=_WAIT_SECONDS))
        except PushgateError as error:
            return str(error)
        return found.reason

    async def _access_form(self, request: Request, shown: ConnectionView, values: Values) -> Filled:
        known = await self.identities.list_identities(api_request(request, limit=_MAX_IDENTITIES))
        names = [one.name for one in known.items if one.provider == shown.provider]
        return access_form(shown.url, names).filled(values)

    def _edit_page(self, shown: ConnectionView, form: Filled) -> Response:
        status = 422 if form.is_wrong else 200
        version = form.text("version") or version_of(shown)
        return self.renderer.page(
            "edit-connection.html", status, connection=shown, form=form, version=version
        )

    def _access_page(self, shown: ConnectionView, form: Filled) -> Response:
        facts: dict[str, Any] = {"connection": shown, "form": form, "is_ssh": is_ssh(shown.url)}
        facts["version"] = form.text("version") or version_of(shown)
        return self.renderer.page("access.html", 422 if form.is_wrong else 200, **facts)

    def _secrets_page(self, shown: ConnectionView, form: Filled) -> Response:
        refusal = None
        if shown.source is not None:
            name = shown.source.name
            refusal = f"Its deliveries arrive at the webhook of the source {name}: rotate the secret there."
        return secrets_page(
            self.renderer,
            shown,
            form,
            path=f"/connections/{shown.id}",
            above=("Connections", "/connections"),
            refusal=refusal,
        )

    def _to(self, request: Request, flash: str) -> Response:
        return self.renderer.redirect(f"/connections/{request.path_params['id']}", flash=flash)


def _without_empty(form: Filled, shown: ConnectionView) -> dict[str, Any]:
    """Return the body of a change: an object whose fields are empty stays, or is removed if it was shown.

    The URL of a webhook for verdicts is not shown, so that only its checkbox removes it.
    """
    body = form.body()
    for name, fields in _OBJECTS.items():
        if not any(body.get(name, {}).get(field) for field in fields):
            body.pop(name, None)
    if shown.platform is not None and "platform" not in body:
        body["platform"] = None
    if form.text("without_status_webhook") == CHECKED:
        body["status_webhook"] = None
    return body
