"""A fake of Gogs' REST API for the webhooks of repositories.

https://github.com/gogs/gogs/blob/main/internal/route/api/v1/repo_hook.go
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from testing.provider_apis.fake import FakeApi, json_of

_PATH = re.compile(r"/api/v1/repos/(?P<repository>[^/]+/[^/]+)/hooks(?:/(?P<id>\d+)(?P<tests>/tests)?)?")


@dataclass(slots=True)
class FakeGogs(FakeApi):
    """Gogs with some repositories. `tokens` has the repositories that each token sees.

    A token in `readers` sees the repositories and may not administer them.
    """

    docs: ClassVar[str] = "https://github.com/gogs/docs-api"
    kinds: ClassVar[frozenset[str]] = frozenset({"gogs", "slack", "discord", "dingtalk"})
    all_events: ClassVar[frozenset[str]] = frozenset(
        {
            "create",
            "delete",
            "fork",
            "push",
            "issues",
            "pull_request",
            "issue_comment",
            "release",
        }
    )

    tokens: dict[str, set[str]] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    next_id: int = 0

    async def handle(self, request: Request) -> Response:
        """Answer as Gogs does."""
        found = _PATH.fullmatch(request.url.path)
        repository = found["repository"].lower() if found else ""
        refused = self.refused(request, repository)
        if refused is not None or found is None:
            return refused or self.explained(404, "not found")
        hooks = self.hooks.setdefault(repository, [])
        hook = next((hook for hook in hooks if str(hook["id"]) == found["id"]), None)
        match request.method, found["id"], found["tests"]:
            case "GET", None, None:
                return self.listed(request, hooks)
            case "POST", None, None:
                return await self._add(request, hooks)
            case "POST", _, "/tests":
                return await self.tested(repository, hook)
            case "DELETE", _, None:
                return self.deleted(hooks, hook)
        # A real server would change the webhook, but not its secret.
        return Response(status_code=405)

    def refused(self, request: Request, repository: str) -> Response | None:
        """Return the refusal of a token, if it is refused."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "token" or token not in self.tokens:
            return self.explained(401, "invalid username, password or token")
        if repository not in self.tokens[token]:
            return self.explained(404, "not found")
        reason = "user should be an owner or a collaborator with admin write of a repository"
        return self.explained(403, reason) if token in self.readers else None

    def explained(self, status: int, message: str) -> Response:
        """Return a refusal; Gogs explains only that of an invalid webhook."""
        if status == HTTPStatus.UNPROCESSABLE_ENTITY:
            return JSONResponse({"message": message, "url": self.docs}, status)
        return Response(status_code=status)

    def listed(self, _request: Request, hooks: list[dict[str, Any]]) -> Response:
        """Return all webhooks; Gogs has no pages."""
        return JSONResponse([shown(hook) for hook in hooks])

    def events(self, names: Collection[str]) -> list[str]:
        """Return the events of a webhook. Other names are ignored."""
        return sorted(self.all_events & set(names))

    def wrong(self, wanted: dict[str, Any]) -> str | None:
        """Return what is wrong with a webhook; Gogs accepts any URL."""
        config = wanted["config"]
        if wanted["type"] not in self.kinds:
            return "Invalid hook type."
        missing = next((name for name in ("url", "content_type") if name not in config), None)
        if missing is not None:
            return f"Missing config option: {missing}"
        return None if config["content_type"] in {"json", "form"} else "Invalid content type."

    async def tested(self, _repository: str, _hook: dict[str, Any] | None) -> Response:
        """Answer a request for a test delivery, which Gogs does not have."""
        return self.explained(404, "not found")

    def deleted(self, hooks: list[dict[str, Any]], hook: dict[str, Any] | None) -> Response:
        """Delete a webhook; for Gogs it may be gone already."""
        if hook is not None:
            hooks.remove(hook)
        return Response(status_code=204)

    async def _add(self, request: Request, hooks: list[dict[str, Any]]) -> Response:
        wanted = await json_of(request)
        wrong = self.wrong(wanted)
        if wrong is not None:
            return self.explained(422, wrong)
        self.next_id += 1
        hook = {
            "id": self.next_id,
            "type": wanted["type"],
            "active": wanted.get("active", False),
            "events": self.events(wanted.get("events") or ["push"]),
            "config": wanted["config"],
        }
        # One URL may be added any number of times.
        hooks.append(hook)
        return JSONResponse(shown(hook), 201)


def shown(hook: dict[str, Any]) -> dict[str, Any]:
    """Return a webhook as an answer has it: without the secret."""
    return {**hook, "config": {name: hook["config"][name] for name in ("url", "content_type")}}
