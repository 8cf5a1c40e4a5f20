"""The pages of notification channels: where notifications go, and which."""

from dataclasses import dataclass
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.channel_schemas import ChannelChange, NewChannel
from gateway.api.notification_channels import ChannelView, NotificationChannels
from gateway.dashboard.api_forms import Filled, Form, FormField, api_request, version_of
from gateway.dashboard.forms import read_large_form
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.routes import PageRoute
from gateway.store.notification_channels import Happening

_WAIT_SECONDS = "10"
_KINDS = {"slack": "Slack", "teams": "Microsoft Teams", "webhook": "signed webhook", "smtp": "mail"}
_HAPPENINGS = {name: name.replace("-", " ") for name in get_args(Happening)}
_SECURITY = {"starttls": "STARTTLS", "tls": "TLS from the start"}
_NAME = FormField(name="name", label="Name", required=True, example="ml-team", empty="keep")
_REST = (
    FormField(name="url", label="URL", kind="secret"),
    FormField(name="secret", label="Signing secret", kind="secret"),
    FormField(name="mail.host", label="Mail server"),
    FormField(name="mail.port", label="Port"),
    FormField(name="mail.security", label="Encryption", kind="choice", choices=_SECURITY),
    FormField(name="mail.user", label="User there"),
    FormField(name="password", label="Password", kind="secret"),
    FormField(name="mail.sender", label="Sender", example="pushgate@example.com"),
    FormField(name="mail.recipients", label="Recipients", kind="lines"),
    FormField(name="happenings", label="Notify of", kind="choices", choices=_HAPPENINGS, help=""),
    FormField(name="connections", label="Connections", kind="lines"),
    FormField(name="projects", label="Projects", kind="lines"),
)
_NEW = Form(
    model=NewChannel,
    fields=(_NAME, FormField(name="kind", label="Kind", kind="choice", choices=_KINDS), *_REST),
    places={"mail": "mail.host"},
)
_CHANGE = Form(model=ChannelChange, fields=(_NAME, *_REST), places={"mail": "mail.host"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelPages:
    """The handlers of the pages."""

    channels: NotificationChannels
    renderer: Renderer

    def routes(self) -> list[PageRoute]:
        """Return the pages and their paths."""
        path = "/notifications/{id}"
        return [
            ("/notifications/new", "GET", self.new),
            ("/notifications/new", "POST", self.create),
            (f"{path}/edit", "GET", self.edit),
            (f"{path}/edit", "POST", self.change),
            (f"{path}/test", "POST", self.test),
            (f"{path}/delete", "GET", self.confirm),
            (f"{path}/delete", "POST", self.delete),
        ]

    async def new(self, _request: Request) -> Response:
        """`GET /notifications/new`: show the form of a new channel."""
        form = _NEW.of({"kind": "slack", "happenings": list(_HAPPENINGS), "mail": {"port": 587}})
        return self._form_page(form, shown=None)

    async def create(self, request: Request) -> Response:
        """`POST /notifications/new`: add a channel; a generated signing secret is shown once."""
        form = _NEW.filled(await read_large_form(request))
        made = await form.send(self.channels.create_channel, request, _body(form, form.text("kind")))
        if made is None:
            return self._form_page(form, shown=None)
        if made.secret is not None:
            return self.renderer.page("channel-secret.html", 201, channel=made)
        return self.renderer.redirect("/notifications", flash=f"The channel {made.name} is added.")

    async def edit(self, request: Request) -> Response:
        """`GET /notifications/{id}/edit`: show a channel in a form."""
        shown = await self.channels.get_channel(request)
        return self._form_page(_CHANGE.of(shown.model_dump()), shown=shown)

    async def change(self, request: Request) -> Response:
        """`POST /notifications/{id}/edit`: change a channel; empty secrets stay as they are."""
        shown = await self.channels.get_channel(request)
        form = _CHANGE.filled(await read_large_form(request))
        changed = await form.send(self.channels.update_channel, request, _body(form, shown.kind))
        if changed is None:
            return self._form_page(form, shown=shown)
        return self.renderer.redirect("/notifications", flash=f"The channel {changed.name} is changed.")

    async def test(self, request: Request) -> Response:
        """`POST /notifications/{id}/test`: send a test message, and show whether it was sent."""
        found = await self.channels.test_channel(api_request(request, wait=_WAIT_SECONDS))
        if found.problem is not None:
            flash = f"The test to {found.name} was not sent: {found.problem}."
            return self.renderer.redirect("/notifications", flash=flash, kind="bad")
        return self.renderer.redirect("/notifications", flash=f"The test to {found.name} is on its way.")

    async def confirm(self, request: Request) -> Response:
        """`GET /notifications/{id}/delete`: show what a deletion removes."""
        shown = await self.channels.get_channel(request)
        return self.renderer.page(
            "delete.html",
            what=f"the channel {shown.name}",
            above=[("Notifications", "/notifications")],
            section_of="notifications",
            target=f"/notifications/{shown.id}/delete",
            back="/notifications",
            losses=["Nothing is sent there any more, and what was still to be sent is given up."],
            refusal=None,
        )

    async def delete(self, request: Request) -> Response:
        """`POST /notifications/{id}/delete`: delete a channel."""
        shown = await self.channels.get_channel(request)
        await self.channels.delete_channel(request)
        return self.renderer.redirect("/notifications", flash=f"The channel {shown.name} is deleted.")

    def _form_page(self, form: Filled, *, shown: ChannelView | None) -> Response:
        facts: dict[str, Any] = {
            "form": form,
            "shown": shown,
            "target": "/notifications/new" if shown is None else f"/notifications/{shown.id}/edit",
            "version": "" if shown is None else form.text("version") or version_of(shown),
        }
        return self.renderer.page("channel-form.html", 422 if form.is_wrong else 200, **facts)


def _body(form: Filled, kind: str) -> dict[str, Any]:
    """Return the body of a request: mail settings belong to the kind `smtp` alone."""
    body = form.body()
    if kind != "smtp":
        body.pop("mail", None)
    return body
