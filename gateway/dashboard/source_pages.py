"""The pages that add, change and delete sources and their rules."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.identities import Identities
from gateway.api.schemas import NewRule, NewSource, SourceChange
from gateway.api.source_views import SourceView
from gateway.api.sources import Sources
from gateway.api.webhook_secrets import WebhookSecrets
from gateway.dashboard.api_forms import Filled, Form, FormField, api_request, version_of
from gateway.dashboard.connection_forms import identity_field, provider_field
from gateway.dashboard.forms import read_large_form
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.routes import PageRoute
from gateway.dashboard.secret_page import SECRET, newest_secret, secret_page, secrets_page
from gateway.dashboard.trigger_pages import Holder, Trigger
from gateway.errors import NotFound
from gateway.text.deletions import LOSSES_OF_SOURCE

_MAX_IDENTITIES = "200"
_SCOPES = {
    "": "by the URL",
    "owner": "an organisation, group, workspace or project",
    "server": "a whole server",
}
_URL = FormField(name="url", label="URL", required=True, example="https://github.com/acme", empty="keep")
_RULE = Form(
    model=NewRule,
    fields=(
        FormField(name="match", label="Repositories", kind="lines", example="ml-*"),
        FormField(name="manifest", label="Only repositories with the manifest", kind="check"),
        FormField(name="project", label="Project", empty="keep", required=True),
        FormField(name="yaml_path", label="Path of the manifest", empty="keep", required=True),
        FormField(name="follows", label="Branches that count", kind="lines"),
    ),
    items="rules",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePages:
    """The handlers of the pages. The rules of a source are numbered from 1: the first that matches counts."""

    sources: Sources
    identities: Identities
    secrets: WebhookSecrets
    renderer: Renderer

    def routes(self) -> list[PageRoute]:
        """Return the pages and their paths."""
        path, rule = "/sources/{id}", "/sources/{id}/rules/{number}"
        return [
            ("/sources/new", "GET", self.new),
            ("/sources/new", "POST", self.create),
            (f"{path}/edit", "GET", self.edit),
            (f"{path}/edit", "POST", self.change),
            (f"{path}/secret", "GET", self.show_secrets),
            (f"{path}/secret", "POST", self.rotate),
            (f"{path}/secret/revoke", "POST", self.revoke),
            (f"{path}/delete", "GET", self.confirm),
            (f"{path}/delete", "POST", self.delete),
            (f"{path}/rules/new", "GET", self.new_rule),
            (f"{path}/rules/new", "POST", self.save_rule),
            (rule, "GET", self.edit_rule),
            (rule, "POST", self.save_rule),
            (f"{rule}/up", "POST", self.move_rule),
            (f"{rule}/delete", "POST", self.delete_rule),
        ]

    async def new(self, request: Request) -> Response:
        """`GET /sources/new`: show the form of a new source."""
        return self._form_page((await self._form(request, None)).filled({}), shown=None)

    async def create(self, request: Request) -> Response:
        """`POST /sources/new`: add a source, and show its secret once."""
        form = (await self._form(request, None)).filled(await read_large_form(request))
        made = await form.send(self.sources.create_source, request, form.body())
        if made is None:
            return self._form_page(form, shown=None)
        path = f"/sources/{made.id}"
        above = [("Sources", "/sources"), (made.name, path)]
        return secret_page(self.renderer, made, above=above, next_path=path, is_new=True)

    async def edit(self, request: Request) -> Response:
        """`GET /sources/{id}/edit`: show the settings in a form."""
        shown = await self.sources.get_source(request)
        form = (await self._form(request, shown)).of(shown.model_dump())
        return self._form_page(form, shown=shown)

    async def change(self, request: Request) -> Response:
        """`POST /sources/{id}/edit`: change the settings."""
        shown = await self.sources.get_source(request)
        form = (await self._form(request, shown)).filled(await read_large_form(request))
        changed = await form.send(self.sources.update_source, request, form.body())
        if changed is None:
            return self._form_page(form, shown=shown)
        return self.renderer.redirect(f"/sources/{shown.id}", flash=f"The source {changed.name} is changed.")

    async def show_secrets(self, request: Request) -> Response:
        """`GET /sources/{id}/secret`: show when the valid secrets were used, and how to rotate."""
        return self._secrets_page(await self.sources.get_source(request), SECRET.filled({}))

    async def rotate(self, request: Request) -> Response:
        """`POST /sources/{id}/secret`: set a new secret, and show it once."""
        shown = await self.sources.get_source(request)
        path, form = f"/sources/{shown.id}", SECRET.filled(await read_large_form(request))
        if form.text("newest") != newest_secret(shown):
            flash = "The secret was rotated meanwhile. Each new secret is shown only once."
            return self.renderer.redirect(f"{path}/secret", flash=flash, kind="bad")
        made = await form.send(self.sources.rotate_source_secret, request, form.body())
        if made is None:
            return self._secrets_page(shown, form)
        above = [("Sources", "/sources"), (shown.name, path)]
        return secret_page(self.renderer, made, above=above, next_path=path, is_new=False)

    async def revoke(self, request: Request) -> Response:
        """`POST /sources/{id}/secret/revoke`: revoke the previous secret."""
        await self.secrets.revoke_source_secret(request)
        return self._to(request, "The previous secret is revoked: only the newest is valid.")

    async def confirm(self, request: Request) -> Response:
        """`GET /sources/{id}/delete`: show what a deletion removes, and what stays."""
        shown = await self.sources.get_source(request)
        path = f"/sources/{shown.id}"
        return self.renderer.page(
            "delete.html",
            what=f"the source {shown.name}",
            above=[("Sources", "/sources"), (shown.name, path)],
            section_of="sources",
            target=f"{path}/delete",
            back=path,
            losses=LOSSES_OF_SOURCE,
            refusal=None,
        )

    async def delete(self, request: Request) -> Response:
        """`POST /sources/{id}/delete`: delete a source."""
        shown = await self.sources.get_source(request)
        await self.sources.delete_source(request)
        return self.renderer.redirect("/sources", flash=f"The source {shown.name} is deleted.")

    async def new_rule(self, request: Request) -> Response:
        """`GET /sources/{id}/rules/new`: show the form of a new rule."""
        shown = await self.sources.get_source(request)
        return self._rule_page(shown, _RULE.of(NewRule().model_dump()), number=None)

    async def edit_rule(self, request: Request) -> Response:
        """`GET /sources/{id}/rules/{number}`: show a rule in a form, and its triggers."""
        shown = await self.sources.get_source(request)
        number = _number(request, shown)
        return self._rule_page(shown, _RULE.of(shown.rules[number - 1]), number=number)

    async def save_rule(self, request: Request) -> Response:
        """`POST /sources/{id}/rules/new` and `…/{number}`: save a rule; its triggers stay."""
        shown = await self.sources.get_source(request)
        number = _number(request, shown) if "number" in request.path_params else None
        form = _RULE.filled(await read_large_form(request))
        body, rules = form.body(), list(shown.rules)
        form.check(body)
        if number is None:
            rules.append({**body, "triggers": []})
        else:
            rules[number - 1] = {**body, "triggers": rules[number - 1]["triggers"]}
        if not form.is_wrong:
            changed = api_request(request, {"rules": rules}, version=form.text("version"))
            if await form.accepted(self.sources.update_source(changed)) is not None:
                path = f"/sources/{shown.id}/rules/{number or len(rules)}"
                return self.renderer.redirect(path, flash="The rule is saved, and decides again.")
        return self._rule_page(shown, form, number=number)

    async def move_rule(self, request: Request) -> Response:
        """`POST /sources/{id}/rules/{number}/up`: move a rule before the one above it."""
        shown = await self.sources.get_source(request)
        number, rules = _number(request, shown), list(shown.rules)
        rules.insert(max(number - 2, 0), rules.pop(number - 1))
        await self.sources.update_source(api_request(request, {"rules": rules}, version=version_of(shown)))
        return self._to(request, "The rules decide in the new order.")

    async def delete_rule(self, request: Request) -> Response:
        """`POST /sources/{id}/rules/{number}/delete`: delete a rule; its connections stay."""
        shown = await self.sources.get_source(request)
        number, rules = _number(request, shown), list(shown.rules)
        del rules[number - 1]
        await self.sources.update_source(api_request(request, {"rules": rules}, version=version_of(shown)))
        return self._to(request, "The rule is deleted. The connections that it has made stay.")

    async def _form(self, request: Request, shown: SourceView | None) -> Form:
        page = await self.identities.list_identities(api_request(request, limit=_MAX_IDENTITIES))
        names = [one.name for one in page.items if shown is None or one.provider == shown.provider]
        networks = FormField(name="networks", label="Networks that may send webhooks", kind="lines")
        if shown is not None:
            name = FormField(name="name", label="Name", required=True, empty="keep")
            identity = identity_field(names, none="none", empty="null")
            return Form(model=SourceChange, fields=(name, _URL, identity, networks))
        return Form(
            model=NewSource,
            fields=(
                provider_field("choose a provider"),
                _URL,
                FormField(name="scope", label="Scope", kind="choice", choices=_SCOPES),
                FormField(name="name", label="Name"),
                identity_field(names, none="none"),
                FormField(name="secret", label="Webhook secret", kind="secret"),
                networks,
            ),
        )

    def _form_page(self, form: Filled, *, shown: SourceView | None) -> Response:
        path = "/sources" if shown is None else f"/sources/{shown.id}"
        facts: dict[str, Any] = {
            "form": form,
            "shown": shown,
            "target": f"{path}/new" if shown is None else f"{path}/edit",
            "back": path,
            "version": "" if shown is None else form.text("version") or version_of(shown),
        }
        return self.renderer.page("source-form.html", 422 if form.is_wrong else 200, **facts)

    def _rule_page(self, shown: SourceView, form: Filled, *, number: int | None) -> Response:
        path = f"/sources/{shown.id}"
        facts: dict[str, Any] = {
            "source": shown,
            "form": form,
            "number": number,
            "path": f"{path}/rules/{number or 'new'}",
            "triggers": shown.rules[number - 1]["triggers"] if number else [],
            "version": form.text("version") or version_of(shown),
        }
        return self.renderer.page("rule.html", 422 if form.is_wrong else 200, **facts)

    def _secrets_page(self, shown: SourceView, form: Filled) -> Response:
        above = ("Sources", "/sources")
        return secrets_page(self.renderer, shown, form, path=f"/sources/{shown.id}", above=above)

    def _to(self, request: Request, flash: str) -> Response:
        return self.renderer.redirect(f"/sources/{request.path_params['id']}", flash=flash)


def of_rule(sources: Sources) -> Callable[[Request], Awaitable[Holder]]:
    """Return the function that finds the rule of a page's path."""

    async def find(request: Request) -> Holder:
        shown = await sources.get_source(request)
        number = _number(request, shown)

        async def save(triggers: Sequence[Trigger], version: str) -> object:
            rules: list[Mapping[str, Any]] = list(shown.rules)
            rules[number - 1] = {**rules[number - 1], "triggers": triggers}
            return await sources.update_source(api_request(request, {"rules": rules}, version=version))

        path = f"/sources/{shown.id}"
        rule_path = f"{path}/rules/{number}"
        return Holder(
            path=rule_path,
            above=[("Sources", "/sources"), (shown.name, path), (f"Rule {number}", rule_path)],
            section="sources",
            triggers=shown.rules[number - 1]["triggers"],
            version=version_of(shown),
            save=save,
        )

    return find


def _number(request: Request, shown: SourceView) -> int:
    """Return the number of the rule that a path names. Raises `NotFound`."""
    text = request.path_params["number"]
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= len(shown.rules)):
        raise NotFound(f"{shown.name} has no rule {text}: the rules may have been changed")
    return int(text)
