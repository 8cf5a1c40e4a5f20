"""The pages of triggers: a form for each, with a dry run on past pushes before it is saved."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.connections import Connections
from gateway.api.dry_run import DryRun, PlayedPage
from gateway.dashboard.api_forms import Filled, api_request, version_of
from gateway.dashboard.forms import read_large_form
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.routes import PageRoute
from gateway.dashboard.trigger_form import (
    DryRunResult,
    form_of_trigger,
    new_trigger_form,
    trigger_body,
    trigger_form,
)
from gateway.errors import NotFound

Trigger = Mapping[str, Any]

_PAST_PUSHES = "20"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What has triggers: a connection, or a rule of a source.

    `path` is that of its page, `above` are the pages above those of its triggers, `section` is the one in the
    navigation. `save` replaces all triggers of a version, and `play` simulates others over past pushes, if
    that is possible; both raise `Invalid`.
    """

    path: str
    above: Sequence[tuple[str, str]]
    section: str
    triggers: Sequence[Trigger]
    version: str
    save: Callable[[Sequence[Trigger], str], Awaitable[object]]
    play: Callable[[Sequence[Trigger]], Awaitable[PlayedPage]] | None = None


def of_connection(connections: Connections, dry_run: DryRun) -> Callable[[Request], Awaitable[Holder]]:
    """Return the function that finds the connection of a page's path."""

    async def find(request: Request) -> Holder:
        shown = await connections.get_connection(request)

        async def save(triggers: Sequence[Trigger], version: str) -> object:
            body = {"triggers": triggers}
            return await connections.update_connection(api_request(request, body, version=version))

        async def play(triggers: Sequence[Trigger]) -> PlayedPage:
            return await dry_run.plan_connection(
                api_request(request, {"triggers": triggers}, limit=_PAST_PUSHES)
            )

        path = f"/connections/{shown.id}"
        above = [("Connections", "/connections"), (shown.name, path)]
        return Holder(
            path=path,
            above=above,
            section="connections",
            triggers=shown.triggers,
            version=version_of(shown),
            save=save,
            play=play,
        )

    return find


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerPages:
    """The handlers of the pages below a path, that of a connection or of a rule, which `find` reads.

    The query parameter `trigger` names a trigger, because a name may have slashes.
    """

    base: str
    find: Callable[[Request], Awaitable[Holder]]
    renderer: Renderer

    def routes(self) -> list[PageRoute]:
        """Return the pages and their paths."""
        path = f"{self.base}/triggers"
        return [
            (f"{path}/new", "GET", self.new),
            (f"{path}/new", "POST", self.save),
            (f"{path}/edit", "GET", self.edit),
            (f"{path}/edit", "POST", self.save),
            (f"{path}/delete", "GET", self.confirm),
            (f"{path}/delete", "POST", self.delete),
        ]

    async def new(self, request: Request) -> Response:
        """`GET …/triggers/new?like=`: show the form of a new trigger, or of a copy."""
        holder, like = await self.find(request), request.query_params.get("like")
        form = new_trigger_form()
        if like is not None:
            form = trigger_form({**form_of_trigger(_named(holder, like)).values, "name": [f"{like} copy"]})
        return self._page(holder, form, old=None)

    async def edit(self, request: Request) -> Response:
        """`GET …/triggers/edit?trigger=`: show a trigger in a form."""
        holder = await self.find(request)
        old = _named(holder, request.query_params.get("trigger", ""))
        return self._page(holder, form_of_trigger(old), old=old)

    async def save(self, request: Request) -> Response:
        """`POST …/triggers/new` and `…/edit?trigger=`: save a trigger, or try it on past pushes.

        The triggers are replaced as a whole; the others stay as they are stored now.
        """
        holder = await self.find(request)
        form = trigger_form(await read_large_form(request))
        name = request.query_params.get("trigger")
        old = None if name is None else _named(holder, name)
        trigger = trigger_body(form)
        triggers = [trigger if one == old else one for one in holder.triggers]
        triggers += [trigger] if old is None else []
        if form.text("action") == "try" and holder.play is not None:
            tried = None if form.is_wrong else await form.accepted(holder.play(triggers))
            result = None if tried is None else DryRunResult.of(tried, form.text("name"))
            return self._page(holder, form, old=old, tried=result)
        if form.is_wrong or await form.accepted(holder.save(triggers, form.text("version"))) is None:
            return self._page(holder, form, old=old)
        return self.renderer.redirect(holder.path, flash=f"The trigger {form.text('name')} is saved.")

    async def confirm(self, request: Request) -> Response:
        """`GET …/triggers/delete?trigger=`: show what a deletion removes."""
        holder = await self.find(request)
        old = _named(holder, request.query_params.get("trigger", ""))
        path = f"{holder.path}/triggers/delete?{urlencode({'trigger': old['name']})}"
        return self.renderer.page(
            "delete.html",
            what=f"the trigger {old['name']}",
            above=holder.above,
            section_of=holder.section,
            target=path,
            back=holder.path,
            losses=["Pushes do not run it any more.", "What it has requested already stays as it is."],
            refusal=None,
        )

    async def delete(self, request: Request) -> Response:
        """`POST …/triggers/delete?trigger=`: delete a trigger."""
        holder = await self.find(request)
        old = _named(holder, request.query_params.get("trigger", ""))
        await holder.save([one for one in holder.triggers if one != old], holder.version)
        return self.renderer.redirect(holder.path, flash=f"The trigger {old['name']} is deleted.")

    def _page(
        self, holder: Holder, form: Filled, *, old: Trigger | None, tried: DryRunResult | None = None
    ) -> Response:
        path = f"{holder.path}/triggers/"
        facts: dict[str, Any] = {
            "holder": holder,
            "form": form,
            "old": old,
            "target": f"{path}new" if old is None else f"{path}edit?{urlencode({'trigger': old['name']})}",
            "version": form.text("version") or holder.version,
            "tried": tried,
            "past_pushes": _PAST_PUSHES,
        }
        return self.renderer.page("trigger.html", 422 if form.is_wrong else 200, **facts)


def _named(holder: Holder, name: str) -> Trigger:
    for trigger in holder.triggers:
        if trigger["name"] == name:
            return trigger
    raise NotFound(f"no trigger {name} exists here: it may have been renamed or deleted")
