"""A fake of Gogs' REST API for webhooks, which only repositories have.

https://github.com/gogs/gogs/blob/main/internal/route/api/v1/repo_hook.go
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from testing.provider_apis.fake import FakeApi, FakeRepository, json_of

_LIST = re.compile(r"/api/v1/(?:orgs/(?P<owner>[^/]+)/repos|repos/search)")
_FILE = re.compile(r"/api/v1/repos/(?P<repository>[^/]+/[^/]+)/contents/(?P<path>.+)")
_PATH = re.compile(r"/api/v1/repos/(?P<repository>[^/]+/[^/]+)/hooks(?:/(?P<id>\d+)(?P<tests>/tests)?)?")


@dataclass(slots=True)
class FakeGogs(FakeApi):
    """Gogs with some repositories. `tokens` has the repositories that each token sees.

    It also has the organisations that the token owns, and an empty name if it is an administrator's. A token
    in `readers` sees all of these and may not administer them.
    """

    paths: ClassVar[re.Pattern[str]] = _PATH
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
        path = request.url.path
        if read := _LIST.fullmatch(path) or _FILE.fullmatch(path):
            named = read.groupdict()
            name = (named.get("repository") or named.get("owner") or "").lower()
            return self.hidden(request, name) or self.read(request, name, named.get("path"))
        found = self.paths.fullmatch(path)
        if found is None:
            return self.explained(404, "not found")
        name = (found["repository"] or found.groupdict().get("owner") or "").lower()
        return self.hidden(request, name) or self.refused(request) or await self.hook(request, name, found)

    async def hook(self, request: Request, repository: str, found: re.Match[str]) -> Response:
        """Answer a request for webhooks."""
        hooks = self.hooks.setdefault(repository, [])
        hook = next((hook for hook in hooks if str(hook["id"]) == found["id"]), None)
        match request.method, found["id"], found["tests"]:
            case "GET", None, None:
                return self.listed(request, [shown(hook) for hook in hooks])
            case "POST", None, None:
                return await self._add(request, hooks)
            case "POST", _, "/tests":
                return await self.tested(repository, hook)
            case "DELETE", _, None:
                return self.deleted(hooks, hook)
        # A real server would change the webhook, but not its secret.
        return Response(status_code=405)

    def read(self, request: Request, name: str, path: str | None) -> Response:
        """Return the repositories of an organisation, or a file of a repository."""
        if path is None:
            return self.listed(request, [self.described(one) for one in self.of_owner(name)])
        is_there = self.has_file(name, path, request.query_params.get("ref"))
        return JSONResponse({"type": "file"}) if is_there else self.explained(404, "object does not exist")

    def described(self, repository: FakeRepository) -> dict[str, Any]:
        """Return a repository as an answer has it."""
        return {
            "id": int(repository.id),
            "full_name": repository.full_name,
            "clone_url": self.clone_url(repository),
            "default_branch": repository.default_branch,
            "archived": repository.is_archived,
        }

    def hidden(self, request: Request, name: str) -> Response | None:
        """Return the refusal of a token that is wrong, or does not see a repository or an organisation."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme != "token" or token not in self.tokens:
            return self.explained(401, "invalid username, password or token")
        is_seen = not name or {"", name, name.partition("/")[0]} & self.tokens[token]
        return None if is_seen else self.explained(404, "not found")

    def refused(self, request: Request) -> Response | None:
        """Return the refusal of a token that may not administer what it sees."""
        token = request.headers.get("authorization", "").removeprefix("token ")
        reason = "user should be an owner or a collaborator with admin write of a repository"
        return self.explained(403, reason) if token in self.readers else None

    def explained(self, status: int, message: str) -> Response:
        """Return a refusal; Gogs explains only that of an invalid webhook."""
        if status == HTTPStatus.UNPROCESSABLE_ENTITY:
            return JSONResponse({"message": message, "url": self.docs}, status)
        return Response(status_code=status)

    def listed(self, _request: Request, items: list[dict[str, Any]]) -> Response:
        """Return all items; Gogs has no pages."""
        return JSONResponse(items)

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
