"""A fake of Gitea's and Forgejo's REST API: webhooks of repositories, organisations and the server; statuses.

https://github.com/go-gitea/gitea/blob/main/routers/api/v1/utils/hook.go
https://github.com/go-gitea/gitea/blob/main/models/git/commit_status.go
"""

import json
import re
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from providers import gitea
from testing.provider_apis.fake import json_of
from testing.provider_apis.gogs import FakeGogs

MAX_PAGE = 50
# The size of the column of a status' state.
MAX_STATE = 7
COMMIT = "1f" * 20
_STATUS = re.compile(r"/api/v1/repos/(?P<repository>[^/]+/[^/]+)/statuses/(?P<commit>[^/]+)")
# From the worst to the best, before 1.25.
_ORDER = ("error", "failure", "warning", "pending", "success")
_PULL_REQUEST_EVENTS = frozenset(
    {
        "pull_request",
        "pull_request_assign",
        "pull_request_label",
        "pull_request_milestone",
        "pull_request_comment",
        "pull_request_review",
        "pull_request_review_request",
        "pull_request_sync",
    }
)


@dataclass(slots=True)
class FakeGitea(FakeGogs):
    """Gitea with some repositories.

    The tokens in `unscoped` lack a scope, the repositories in `empty` have no commit, and no repository has
    the commits in `missing`.
    """

    paths: ClassVar[re.Pattern[str]] = re.compile(
        r"/api/v1/(?:repos/(?P<repository>[^/]+/[^/]+)|orgs/(?P<owner>[^/]+)|admin)"
        r"/hooks(?:/(?P<id>\d+)(?P<tests>/tests)?)?"
    )
    docs: ClassVar[str] = "https://git.acme.example/api/swagger"
    kinds: ClassVar[frozenset[str]] = frozenset({"gitea", "gogs", "forgejo", "slack", "discord"})
    all_events: ClassVar[frozenset[str]] = _PULL_REQUEST_EVENTS | {
        "create",
        "delete",
        "fork",
        "push",
        "repository",
        "wiki",
        "release",
        "package",
    }

    unscoped: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    version: tuple[int, int] = (1, 26)
    is_forgejo: bool = False
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def statuses(self) -> dict[tuple[str, str], str]:
        """Return the states that people see, by commit and context."""
        return {(commit, status["context"].strip()): status["state"] for commit, status in self.sent}

    @property
    def status_writes(self) -> int:
        """Return how many requests have set a status."""
        return len(self.sent)

    def combined(self, commit: str) -> str:
        """Return the combined state of all contexts, which decides whether a pull request may be merged."""
        states = [state for (of, _), state in self.statuses.items() if of == commit]
        if self.is_forgejo or self.version < (1, 25):
            known = [state for state in states if state in _ORDER]
            return min(known, key=_ORDER.index, default="")
        bad = {"error", "failure", *(() if self.version == (1, 25) else ("warning",))}
        if bad.intersection(states):
            return "failure"
        return "success" if {"success", "warning", "skipped"}.issuperset(states) and states else "pending"

    async def handle(self, request: Request) -> Response:
        """Answer as Gitea does."""
        found = _STATUS.fullmatch(request.url.path)
        if found is None:
            return await FakeGogs.handle(self, request)
        name = found["repository"].lower()
        return self.hidden(request, name) or self._status_refusal(request) or await self._set(request, found)

    def _status_refusal(self, request: Request) -> Response | None:
        """Return the refusal of a token that may not write to the repository."""
        token = request.headers.get("authorization", "").removeprefix("token ")
        if token in self.readers:
            return self.explained(403, "user should have a permission to write to a repo")
        return self.refused(request)

    async def _set(self, request: Request, found: re.Match[str]) -> Response:
        wanted, commit = await json_of(request), found["commit"]
        if commit in self.missing and self.is_forgejo:
            return self.explained(404, f"sha not found: {commit}")
        if commit in self.missing or len(wanted["state"]) > MAX_STATE:
            return self.explained(500, "")
        # Any state is stored, also an unknown one.
        self.sent.append((commit, wanted))
        shown = {"id": len(self.sent), "status": wanted["state"], "context": wanted["context"].strip()}
        return JSONResponse(shown, 201)

    def refused(self, request: Request) -> Response | None:
        """Return the refusal of a token that may not administer what it sees."""
        token = request.headers.get("authorization", "").removeprefix("token ")
        if request.url.path.startswith("/api/v1/admin/") and "" not in self.tokens[token]:
            return self.explained(403, "user should be the site admin")
        if token in self.unscoped:
            scopes = "required=[write:repository], token scope=read:repository"
            return self.explained(403, f"token does not have at least one of required scope(s), {scopes}")
        return FakeGogs.refused(self, request)

    def explained(self, status: int, message: str) -> Response:
        """Return a refusal."""
        return JSONResponse({"message": message, "url": self.docs}, status)

    def listed(self, request: Request, items: list[dict[str, Any]]) -> Response:
        """Return a page, without links to other pages."""
        size = min(int(request.query_params.get("limit", "30")), MAX_PAGE)
        start = (int(request.query_params.get("page", "1")) - 1) * size
        page: Any = items[start : start + size]
        if request.url.path.endswith("/search"):
            page = {"ok": True, "data": page}
        return JSONResponse(page, headers={"X-Total-Count": str(len(items))})

    def events(self, names: Collection[str]) -> list[str]:
        """Return the events of a webhook; `pull_request` stands for all events of pull requests."""
        family = _PULL_REQUEST_EVENTS if "pull_request" in names else frozenset()
        alone = {"pull_request"} if "pull_request_only" in names else frozenset()
        return FakeGogs.events(self, family | alone | set(names))

    def wrong(self, wanted: dict[str, Any]) -> str | None:
        """Return what is wrong with a webhook."""
        wrong = FakeGogs.wrong(self, wanted)
        return wrong or (None if wanted["config"]["url"].startswith("http") else "Invalid url")

    def deleted(self, hooks: list[dict[str, Any]], hook: dict[str, Any] | None) -> Response:
        """Delete a webhook, which must exist."""
        return self.explained(404, "not found") if hook is None else FakeGogs.deleted(self, hooks, hook)

    async def tested(self, repository: str, hook: dict[str, Any] | None) -> Response:
        """Send a push of the newest commit. A failure of the delivery is not shown."""
        if repository in self.empty or hook is None:
            return self.explained(404, "repository is empty" if repository in self.empty else "not found")
        body = json.dumps(
            {
                "ref": "refs/heads/main",
                "before": COMMIT,
                "after": COMMIT,
                "commits": [{"id": COMMIT}],
                "total_commits": 1,
                "repository": {"id": 1, "full_name": repository, "clone_url": f"{self.url}/{repository}.git"},
            }
        ).encode()
        secret, now = hook["config"].get("secret", "").encode(), datetime.now(UTC)
        headers = gitea.sign(event="push", body=body, secret=secret, delivery=str(uuid.uuid4()), now=now)
        async with httpx2.AsyncClient() as http:
            with suppress(httpx2.HTTPError):
                await http.post(hook["config"]["url"], content=body, headers=headers)
        return Response(status_code=204)
