"""The page of the messages that nobody could deliver, which puts them back or drops them."""

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.dead_letters import DeadLetters, DeadLettersDone
from gateway.dashboard.forms import read_large_form
from gateway.dashboard.rendering import Renderer
from gateway.dashboard.routes import PageRoute

_PATH = "/dead-letters"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterPages:
    """The handlers."""

    dead_letters: DeadLetters
    renderer: Renderer

    def routes(self) -> list[PageRoute]:
        """Return the paths with their methods and handlers, for users who have signed in."""
        return [
            (_PATH, "GET", self.show),
            (f"{_PATH}/put-back", "POST", self.put_back),
            (f"{_PATH}/drop", "POST", self.drop),
        ]

    async def show(self, request: Request) -> Response:
        """`GET /dead-letters`: list the dead letters, the oldest first."""
        page = await self.dead_letters.list_dead_letters(request)
        return self.renderer.page("dead-letters.html", page=page)

    async def put_back(self, request: Request) -> Response:
        """`POST /dead-letters/put-back`: publish those that are selected again."""
        ids = await _selected(request)
        return self._after(await self.dead_letters.put_back(ids) if ids else None, "put back")

    async def drop(self, request: Request) -> Response:
        """`POST /dead-letters/drop`: give those that are selected up."""
        ids = await _selected(request)
        return self._after(await self.dead_letters.drop(ids) if ids else None, "dropped")

    def _after(self, result: DeadLettersDone | None, what: str) -> Response:
        if result is None:
            return self.renderer.redirect(_PATH, flash="Select at least one dead letter.", kind="bad")
        count = len(result.done)
        done = f"{count} dead letter{'' if count == 1 else 's'} {what}."
        if not result.failed:
            return self.renderer.redirect(_PATH, flash=done)
        first = result.failed[0]
        others = f", and {len(result.failed) - 1} more" if len(result.failed) > 1 else ""
        failed = f"Not {what}: {first.id or 'a message without an id'}{others}: {first.reason}."
        return self.renderer.redirect(_PATH, flash=f"{done} {failed}", kind="bad")


async def _selected(request: Request) -> list[str]:
    """Return the ids that are selected on the form: all that it has shown, or those with a mark."""
    fields = await read_large_form(request)
    shown = fields.get("shown", [""])[0].split() if "all" in fields else []
    return shown or fields.get("id", [])
