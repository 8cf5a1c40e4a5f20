"""A fake of GitHub's REST API for webhooks and statuses, under `/api/v3` as on Enterprise Server.

https://docs.github.com/en/rest/repos/webhooks and https://docs.github.com/en/rest/orgs/webhooks
"""

import json
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from providers import github
from testing.provider_apis.fake import FakeApi, FakeRepository, json_of, refusal, sender_tls
from testing.provider_apis.github_statuses import SecondaryLimit, Verdicts

MAX_HOOKS = 20
_PATH = re.compile(
    r"/api/v3/(?:repos/[^/]+/|orgs/)[^/]+/hooks(?:/(?P<id>\d+))?"
    r"(?:(?P<pings>/pings)|(?P<log>/deliveries)(?:/(?P<attempt>\d+)/attempts)?)?"
)
_VERDICTS = re.compile(r"(?:statuses/(?P<commit>[0-9a-f]+)|check-runs(?:/(?P<run>\d+))?)")
_PLACE = re.compile(r"/api/v3/(?:repos/(?P<repository>[^/]+/[^/]+)|orgs/(?P<org>[^/]+))/(?P<rest>.*)")
_DOCS = "https://docs.github.com/rest/repos/webhooks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An attempt to deliver an event to a webhook."""

    hook: int
    id: int
    guid: str
    event: str
    body: bytes
    status: int
    message: str = ""
    is_redelivery: bool = False
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(slots=True)
class FakeGitHub(FakeApi):
    """GitHub with some repositories. `tokens` has the repositories that each token may administer.

    `scopes` and `ends` have the scopes of classic tokens, and when tokens end, as the headers show them.

    It also has the organisations whose owner the token is. A token in `readers` sees all of these and may
    not administer them.
    """

    tokens: dict[str, set[str]] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    scopes: dict[str, str] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    pings: list[int] = field(default_factory=list)
    deliveries: list["Delivery"] = field(default_factory=list)
    verdicts: Verdicts = field(default_factory=Verdicts)
    limit: SecondaryLimit = field(default_factory=SecondaryLimit)
    next_id: int = 1000

    @property
    def statuses(self) -> dict[tuple[str, str], str]:
        """What people see beside commits, by commit and context."""
        return self.verdicts.shown()

    @property
    def status_writes(self) -> int:
        """How many requests have set a status, or have written a check run."""
        return self.verdicts.writes

    @property
    def app(self) -> int | None:
        """The App whose tokens the requests have; None if they have those of users."""
        return None

    async def handle(self, request: Request) -> Response:
        """Answer as GitHub does."""
        if request.url.path == "/api/v3/":
            return self._root(request)
        place = _PLACE.fullmatch(request.url.path)
        name = (place["repository"] or place["org"]).lower() if place else ""
        refused = self._refusal(request, name)
        if refused is not None or place is None:
            return refused or refusal(404, "Not Found")
        if request.method != "GET" and (limited := self.limit.refusal()):
            return limited
        if found := _VERDICTS.fullmatch(place["rest"]):
            return await self._verdict(request, found)
        found = _PATH.fullmatch(request.url.path)
        return await (self._hook(request, name, found) if found else self._read(request, name, place["rest"]))

    def _root(self, request: Request) -> Response:
        token = self._bearer(request)
        if token not in self.tokens:
            return refusal(401, "Bad credentials")
        shown = {"X-OAuth-Scopes": self.scopes, "GitHub-Authentication-Token-Expiration": self.ends}
        headers = {name: values[token] for name, values in shown.items() if token in values}
        return JSONResponse({"current_user_url": f"{self.url}/api/v3/user"}, headers=headers)

    async def _hook(self, request: Request, name: str, found: re.Match[str]) -> Response:
        if self._bearer(request) in self.readers:
            return refusal(403, "Resource not accessible by personal access token")
        hooks = self.hooks.setdefault(name, [])
        if found["id"] is None:
            shown = [_shown(hook) for hook in hooks]
            return self._page(request, shown) if request.method == "GET" else await self._add(request, name)
        hook = next((hook for hook in hooks if str(hook["id"]) == found["id"]), None)
        if hook is None:
            return refusal(404, "Not Found")
        if found["log"]:
            return await self._log(request, hook, found["attempt"])
        if request.method == "PATCH":
            return await self._change(request, hook)
        if found["pings"]:
            await self._ping(hook)
        else:
            hooks.remove(hook)
        return Response(status_code=204)

    async def _verdict(self, request: Request, found: re.Match[str]) -> Response:
        """Set a status, or create or change a check run."""
        if self._bearer(request) in self.readers:
            return refusal(403, "Resource not accessible by personal access token")
        wanted = await json_of(request)
        if found["commit"]:
            return self.verdicts.set_status(found["commit"], wanted)
        if self.app is None:
            return refusal(403, "You must authenticate via a GitHub App.")
        if found["run"] is None:
            return self.verdicts.create(self.app, wanted)
        return self.verdicts.change(self.app, int(found["run"]), wanted)

    async def _read(self, request: Request, name: str, rest: str) -> Response:
        """Return the repositories of an organisation, or a file of a repository."""
        if rest == "repos" and "/" not in name:
            return self._page(request, [self._described(one) for one in self.of_owner(name)])
        branch = request.query_params.get("ref")
        if rest.startswith("contents/") and self.has_file(name, rest.removeprefix("contents/"), branch):
            return JSONResponse({"type": "file", "encoding": "base64", "content": ""})
        return refusal(404, "Not Found")

    def _described(self, repository: FakeRepository) -> dict[str, Any]:
        return {
            "id": int(repository.id),
            "full_name": repository.full_name,
            "clone_url": self.clone_url(repository),
            "default_branch": repository.default_branch,
            "archived": repository.is_archived,
        }

    def _bearer(self, request: Request) -> str:
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def _refusal(self, request: Request, name: str) -> Response | None:
        token = self._bearer(request)
        if token not in self.tokens:
            return refusal(401, "Bad credentials")
        if "x-github-api-version" not in request.headers:
            return refusal(400, "the fake requires the header X-GitHub-Api-Version")
        # GitHub does not say whether a repository exists that a token may not see.
        is_seen = {name, name.partition("/")[0]} & self.tokens[token]
        return None if is_seen else refusal(404, "Not Found")

    def _page(self, request: Request, items: list[dict[str, Any]]) -> Response:
        size = min(int(request.query_params.get("per_page", "30")), 100)
        page = int(request.query_params.get("page", "1"))
        start = (page - 1) * size
        headers = {}
        if start + size < len(items):
            following = request.url.include_query_params(page=page + 1, per_page=size)
            headers["Link"] = f'<{following}>; rel="next", <{following}>; rel="last"'
        return JSONResponse(items[start : start + size], headers=headers)

    async def _add(self, request: Request, name: str) -> Response:
        wanted, hooks = await json_of(request), self.hooks[name]
        kind = "Repository" if "/" in name else "Organization"
        if any(hook["config"]["url"] == wanted["config"]["url"] for hook in hooks):
            return _invalid(f"Hook already exists on this {kind.lower()}")
        for event in wanted["events"]:
            if sum(event in hook["events"] for hook in hooks) >= MAX_HOOKS:
                return _invalid(f'The "{event}" event cannot have more than 20 hooks')
        self.next_id += 1
        hook = {
            "id": self.next_id,
            "type": kind,
            "name": wanted["name"],
            "active": wanted.get("active", True),
            "events": wanted.get("events", ["push"]),
            "config": wanted["config"],
            "last_response": {"code": None, "status": "unused", "message": None},
        }
        hooks.append(hook)
        await self._ping(hook)
        return JSONResponse(_shown(hook), 201)

    async def _change(self, request: Request, hook: dict[str, Any]) -> Response:
        wanted = await json_of(request)
        # A config is replaced as a whole.
        hook.update({key: wanted[key] for key in ("active", "events", "config") if key in wanted})
        return JSONResponse(_shown(hook))

    async def deliver(
        self,
        hook: dict[str, Any],
        event: str,
        body: bytes,
        *,
        guid: str | None = None,
        is_redelivery: bool = False,
    ) -> Delivery:
        """Deliver an event to the webhook's address, and log how it was answered."""
        guid, now = guid or str(uuid.uuid4()), datetime.now(UTC)
        secret = hook["config"].get("secret", "").encode()
        headers = github.sign(event=event, body=body, secret=secret, delivery=guid, now=now)
        try:
            async with httpx2.AsyncClient(verify=sender_tls()) as http:
                answer = await http.post(hook["config"]["url"], content=body, headers=headers)
            status, message, state = answer.status_code, answer.reason_phrase, "active"
        except httpx2.HTTPError:
            status, message, state = 502, "failed to connect to host", "connection_error"
        hook["last_response"] = {"code": status, "status": state, "message": message}
        return self.log(hook, event, body, status, message, guid=guid, is_redelivery=is_redelivery)

    def log(
        self, hook: dict[str, Any], event: str, body: bytes, status: int, message: str = "", **more: Any
    ) -> Delivery:
        """Add an attempt to the log."""
        self.next_id += 1
        more.setdefault("guid", str(uuid.uuid4()))
        self.deliveries.append(
            Delivery(
                hook=hook["id"],
                id=self.next_id,
                event=event,
                body=body,
                status=status,
                message=message,
                **more,
            )
        )
        return self.deliveries[-1]

    async def _log(self, request: Request, hook: dict[str, Any], attempt: str | None) -> Response:
        """Return a page of the log, or deliver an event again."""
        log = [delivery for delivery in reversed(self.deliveries) if delivery.hook == hook["id"]]
        if request.method == "POST":
            first = next((delivery for delivery in log if str(delivery.id) == attempt), None)
            if first is None:
                return refusal(404, "Not Found")
            await self.deliver(hook, first.event, first.body, guid=first.guid, is_redelivery=True)
            return JSONResponse({}, 202)
        if unknown := request.query_params.keys() - {"per_page", "cursor"}:
            return refusal(422, f'Invalid request. "{min(unknown)}" is not a permitted key.')
        size = min(int(request.query_params.get("per_page", "30")), 100)
        start = int(request.query_params.get("cursor", "v1_0").removeprefix("v1_"))
        page = [delivery for delivery in log if not start or delivery.id <= start]
        headers = {}
        if page[size:]:
            following = request.url.include_query_params(cursor=f"v1_{page[size].id}")
            headers["Link"] = f'<{following}>; rel="next"'
        return JSONResponse([_logged(delivery) for delivery in page[:size]], headers=headers)

    async def _ping(self, hook: dict[str, Any]) -> None:
        self.pings.append(hook["id"])
        body = json.dumps({"zen": "Design for failure.", "hook_id": hook["id"]}).encode()
        await self.deliver(hook, "ping", body)


def _logged(delivery: Delivery) -> dict[str, Any]:
    """Return an attempt as the log has it, without the body."""
    return {
        "id": delivery.id,
        "guid": delivery.guid,
        "delivered_at": delivery.at.isoformat(),
        "redelivery": delivery.is_redelivery,
        "duration": 0.1,
        "status": delivery.message
        or ("OK" if delivery.status == 200 else f"Invalid HTTP Response: {delivery.status}"),
        "status_code": delivery.status,
        "event": delivery.event,
        "action": None,
        "installation_id": None,
        "repository_id": 1,
        "throttled_at": None,
    }


def _shown(hook: dict[str, Any]) -> dict[str, Any]:
    config = dict(hook["config"])
    if "secret" in config:
        config["secret"] = "********"
    return {**hook, "config": config}


def _invalid(message: str) -> Response:
    errors = [{"resource": "Hook", "code": "custom", "message": message}]
    return JSONResponse({"message": "Validation Failed", "errors": errors, "documentation_url": _DOCS}, 422)
