"""A fake of GitLab's REST API for webhooks of projects, groups and the server, and for statuses of commits.

https://docs.gitlab.com/api/project_webhooks/ and …/group_webhooks/ and …/system_hooks/
https://docs.gitlab.com/user/project/integrations/webhooks/#auto-disabled-webhooks
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from providers import gitlab
from testing.provider_apis.fake import FakeApi, FakeRepository, json_of, refusal, sender_tls
from testing.provider_apis.gitlab_pipelines import STATUS_PATH, Pipelines

MAX_HOOKS = 100
TESTS_A_MINUTE = 5
RESENDS_A_MINUTE = 5
MAX_LOG_PAGE = 20
SIGNING_TOKENS_SINCE = (19, 0)
TESTS_SINCE = (16, 11)
# The failures in a row after which a webhook is disabled for a time, and for ever.
SOME_FAILURES, MANY_FAILURES = 4, 40

_PATH = re.compile(
    r"/api/v4/(?:(?:projects|groups)/(?P<project>[^/]+)/)?hooks(?:/(?P<id>\d+)"
    r"(?:/test/(?P<trigger>\w+)|(?P<log>/events)(?:/(?P<entry>\d+)/resend)?)?)?"
)
_LIST = re.compile(r"/api/v4/(?:groups/(?P<group>[^/]+)/)?projects")
_FILE = re.compile(r"/api/v4/projects/(?P<project>[^/]+)/repository/files/(?P<path>[^/]+)")
_SIGNING_TOKEN = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")
_EVENTS = (
    *("push_events", "tag_push_events", "merge_requests_events", "note_events", "issues_events"),
    *("job_events", "pipeline_events", "releases_events", "resource_access_token_events"),
)
_SERVER_EVENTS = ("push_events", "tag_push_events", "merge_requests_events", "repository_update_events")
_FIELDS = ("url", "enable_ssl_verification", "push_events_branch_filter", "branch_filter_strategy")
# The first character of a status in the log, and the categories that a list can be limited to.
_CATEGORIES = {
    "2": "successful",
    "3": "",
    "4": "client_failure",
    "5": "server_failure",
    "i": "server_failure",
}
_PAGES = {"per_page": "20", "page": "1"}
SYSTEM_SAMPLE = {
    "event_name": "project_create",
    "name": "Ruby",
    "path": "ruby",
    "project_id": 1,
    "owner_name": "Someone",
    "owner_email": "example@gitlabhq.com",
}
_SAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "push_events": ("Push Hook", {"object_kind": "push", "event_name": "push", "ref": "refs/heads/main"}),
    "resource_access_token_events": (
        "Resource Access Token Hook",
        {
            "object_kind": "access_token",
            "object_attributes": {"id": 1, "name": "pat_for_webhook_event"},
            "event_name": "expiring_access_token",
        },
    ),
}


@dataclass(slots=True)
class FakeGitLab(FakeApi):
    """GitLab with some projects. `tokens` has the projects of which each token is a Maintainer.

    It also has the groups whose Owner the token is, and an empty name if it is an administrator's. A token
    in `developers` has a lower role in them, and one in `readers` has only the scope read_api.
    """

    tokens: dict[str, set[str]] = field(default_factory=dict)
    developers: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)
    version: tuple[int, int] = (19, 4)
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    tests: list[tuple[str, float]] = field(default_factory=list)
    resends: list[tuple[str, float]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    next_id: int = 1000
    pipelines: Pipelines = field(default_factory=Pipelines)

    @property
    def statuses(self) -> dict[tuple[str, str], str]:
        """Return the states that people see, by commit and context."""
        return self.pipelines.statuses

    @property
    def status_writes(self) -> int:
        """Return how many requests have set a status."""
        return self.pipelines.writes

    async def handle(self, request: Request) -> Response:
        """Answer as GitLab does."""
        # A project's path is one quoted part of the URL's path.
        path = request.scope["raw_path"].decode()
        if read := _LIST.fullmatch(path) or _FILE.fullmatch(path):
            named = {key: unquote(name or "") for key, name in read.groupdict().items()}
            place = named.get("project", named.get("group", ""))
            return self._refusal(request, place.lower()) or self._read(request, **named)
        if status := STATUS_PATH.fullmatch(path):
            return await self._set_status(request, unquote(status["project"]).lower(), status["commit"])
        found = _PATH.fullmatch(path)
        project = unquote(found["project"] or "").lower() if found else ""
        refused = self._refusal(request, project)
        if refused is not None or found is None:
            return refused or JSONResponse({"error": "404 Not Found"}, 404)
        token = request.headers["private-token"]
        if token in self.developers or not (project or "" in self.tokens[token]):
            return refusal(403, "403 Forbidden")
        return await self._hook(request, project, found)

    async def _set_status(self, request: Request, project: str, commit: str) -> Response:
        token = request.headers.get("private-token", "")
        return self._refusal(request, project) or self.pipelines.set_status(
            project,
            commit,
            await json_of(request),
            user=token,
            is_developer=token in self.developers,
            version=self.version,
        )

    async def _hook(self, request: Request, project: str, found: re.Match[str]) -> Response:
        hooks = self.hooks.setdefault(project, [])
        if found["id"] is None:
            shown = [self._shown(hook) for hook in hooks]
            return (
                self._page(request, shown) if request.method == "GET" else await self._add(request, project)
            )
        hook = next((hook for hook in hooks if str(hook["id"]) == found["id"]), None)
        if hook is None or (found["trigger"] and self.version < TESTS_SINCE):
            return refusal(404, "404 Not found")
        if request.method == "POST" and not project:
            await self.deliver(hook, "System Hook", SYSTEM_SAMPLE)
            return JSONResponse(SYSTEM_SAMPLE, 201)
        if found["trigger"] or found["log"]:
            test, entry = found["trigger"], found["entry"]
            answer = self._test(project, hook, test) if test else self._events(request, project, hook, entry)
            return await answer
        if request.method == "PUT":
            return self._save(hook, await json_of(request), 200)
        hooks.remove(hook)
        return Response(status_code=204)

    async def deliver(
        self, hook: dict[str, Any], event: str, payload: dict[str, Any], *, key: str | None = None
    ) -> tuple[int, str]:
        """Deliver an event to a webhook; return the receiver's answer, or the error. Count the failures."""
        body = json.dumps(payload).encode()
        headers: dict[str, str] = {}
        key = key or str(uuid.uuid4())
        for kind in ("token", "signing_token"):
            if secret := hook.get(kind, "").encode():
                now = datetime.now(UTC)
                headers |= gitlab.sign(event=event, body=body, secret=secret, delivery=key, now=now)
        try:
            async with httpx2.AsyncClient(verify=sender_tls()) as http:
                answer = await http.post(hook["url"], content=body, headers=headers)
            status, said = answer.status_code, answer.text
        except httpx2.HTTPError as error:
            status, said = 0, f"Failed to open TCP connection ({error})"
        if httpx2.codes.is_success(status) or httpx2.codes.is_redirect(status):
            hook.update(recent_failures=0, disabled_until=None)
        elif _alert_status(hook) == "executable":
            failures = hook.get("recent_failures", 0) + 1
            minutes = min(2 ** max(failures - SOME_FAILURES, 0), 24 * 60)
            until = datetime.now(UTC) + timedelta(minutes=minutes) if failures >= SOME_FAILURES else None
            hook.update(recent_failures=failures, disabled_until=until)
        self.add_to_log(hook, event, payload, status, headers)
        return status, said

    def add_to_log(
        self,
        hook: dict[str, Any],
        event: str,
        payload: dict[str, Any],
        status: int,
        headers: Mapping[str, str],
    ) -> None:
        """Log a delivery; 0 is the status of one that was not answered."""
        self.next_id += 1
        kind = event.removesuffix(" Hook").lower().replace(" ", "_")
        entry = {
            "id": self.next_id,
            "url": hook["url"],
            "trigger": f"{kind}_hooks",
            "request_headers": {
                name.title(): value for name, value in headers.items() if "token" not in name
            },
            "request_data": payload,
            "response_headers": {},
            "response_body": "",
            "execution_duration": 0.1,
            "response_status": str(status) if status else "internal error",
            "created_at": datetime.now(UTC).isoformat(),
        }
        self.log.append({**entry, "hook": hook["id"]})

    async def _events(
        self, request: Request, project: str, hook: dict[str, Any], entry: str | None
    ) -> Response:
        """Return a page of the log, or deliver an event again."""
        log = [logged for logged in reversed(self.log) if logged["hook"] == hook["id"]]
        if request.method == "GET":
            return self._log_page(request, log)
        if self._exceeds(self.resends, project, RESENDS_A_MINUTE):
            return _too_many()
        found = next((logged for logged in log if str(logged["id"]) == entry), None)
        if found is None:
            return refusal(404, "404 Not found")
        headers = found["request_headers"]
        key = headers.get("Idempotency-Key")
        status, said = await self.deliver(hook, headers["X-Gitlab-Event"], found["request_data"], key=key)
        return JSONResponse({"response_status": status}, 201) if status else refusal(422, said)

    def _log_page(self, request: Request, log: list[dict[str, Any]]) -> Response:
        size, page = (int(request.query_params.get(key, default)) for key, default in _PAGES.items())
        if size > MAX_LOG_PAGE:
            return JSONResponse({"error": "per_page does not have a valid value"}, 400)
        if wanted := request.query_params.get("status"):
            log = [logged for logged in log if _CATEGORIES[logged["response_status"][0]] in wanted.split(",")]
        following = str(page + 1) if log[page * size :] else ""
        shown = [{key: value for key, value in logged.items() if key != "hook"} for logged in log]
        return JSONResponse(shown[(page - 1) * size : page * size], headers={"X-Next-Page": following})

    def _exceeds(self, requests: list[tuple[str, float]], project: str, most: int) -> bool:
        """Return whether a project's requests of the last minute are too many; count this one if not."""
        now = self.clock()
        is_over = sum(of == project and at > now - 60 for of, at in requests) >= most
        if not is_over:
            requests.append((project, now))
        return is_over

    def _read(self, request: Request, *, group: str = "", project: str = "", path: str = "") -> Response:
        """Return the projects of a group or of the server, or a file of a project."""
        if path:
            branch = request.query_params.get("ref")
            is_there = self.has_file(project, path, None if branch == "HEAD" else branch)
            return JSONResponse({"file_path": path}) if is_there else refusal(404, "404 File Not Found")
        found = sorted(self.of_owner(group), key=lambda one: int(one.id))
        after = int(request.query_params.get("id_after", "0"))
        return self._page(request, [self._described(one) for one in found if int(one.id) > after])

    def _described(self, repository: FakeRepository) -> dict[str, Any]:
        return {
            "id": int(repository.id),
            "path_with_namespace": repository.full_name,
            "http_url_to_repo": self.clone_url(repository),
            "default_branch": repository.default_branch,
            "archived": repository.is_archived,
        }

    def _refusal(self, request: Request, project: str) -> Response | None:
        token = request.headers.get("private-token")
        if token is None:
            return refusal(401, "401 Unauthorized")
        if token not in self.tokens:
            said = "Token was revoked. You have to re-authorize from the user."
            return JSONResponse({"error": "invalid_token", "error_description": said}, 401)
        if token in self.readers and request.method not in {"GET", "HEAD"}:
            said = "The request requires higher privileges than provided by the access token."
            scope = {"error": "insufficient_scope", "error_description": said, "scope": "api"}
            return JSONResponse(scope, 403)
        # GitLab does not say whether a project exists that a token may not see.
        seen = {project, *(str(group) for group in PurePosixPath(project).parents)}
        return None if not project or seen & self.tokens[token] else refusal(404, "404 Project Not Found")

    def _page(self, request: Request, items: list[dict[str, Any]]) -> Response:
        size = min(int(request.query_params.get("per_page", "20")), 100)
        page = int(request.query_params.get("page", "1"))
        start = (page - 1) * size
        following = str(page + 1) if start + size < len(items) else ""
        headers = {"X-Page": str(page), "X-Per-Page": str(size), "X-Next-Page": following}
        if following:
            # The address that the administrator has set, which may differ from the one that is used.
            headers["Link"] = f'<https://gitlab.internal{request.url.path}?page={following}>; rel="next"'
        return JSONResponse(items[start : start + size], headers=headers)

    async def _add(self, request: Request, project: str) -> Response:
        hooks = self.hooks[project]
        if len(hooks) >= MAX_HOOKS:
            return refusal(422, f"Maximum number of project hooks ({MAX_HOOKS}) exceeded")
        self.next_id += 1
        hook = {"id": self.next_id, **dict.fromkeys(_EVENTS if project else _SERVER_EVENTS, False)}
        hook["push_events" if project else "repository_update_events"] = True
        answer = self._save(hook, await json_of(request), 201)
        if answer.status_code == 201:
            hooks.append(hook)
        return answer

    def _save(self, hook: dict[str, Any], wanted: dict[str, Any], status: int) -> Response:
        """Set the fields of a webhook that this version has, and ignore others."""
        if not str(wanted.get("url", hook.get("url", ""))).startswith(("http://", "https://")):
            return JSONResponse({"error": "Invalid url given"}, 422)
        if "signing_token" in wanted and not _SIGNING_TOKEN.fullmatch(wanted["signing_token"]):
            return refusal(422, "Signing token is invalid")
        secrets = ("token", "signing_token") if self.version >= SIGNING_TOKENS_SINCE else ("token",)
        if wanted.get("url") != hook.get("url"):
            for secret in secrets:
                hook.pop(secret, None)
        events = (key for key in hook if key.endswith("_events"))
        hook.update({key: wanted[key] for key in (*_FIELDS, *events, *secrets) if key in wanted})
        return JSONResponse(self._shown(hook), status)

    async def _test(self, project: str, hook: dict[str, Any], trigger: str) -> Response:
        if trigger not in _SAMPLES:
            return JSONResponse({"error": "trigger does not have a valid value"}, 400)
        if self._exceeds(self.tests, project, TESTS_A_MINUTE):
            return _too_many()
        status, said = await self.deliver(hook, *_SAMPLES[trigger])
        if httpx2.codes.is_success(status):
            return JSONResponse({"message": "201 Created"}, 201)
        return refusal(422, said)

    def _shown(self, hook: dict[str, Any]) -> dict[str, Any]:
        shown = {key: value for key, value in hook.items() if not key.endswith(("token", "failures"))}
        until = hook.get("disabled_until")
        shown |= {"alert_status": _alert_status(hook), "disabled_until": until and until.isoformat()}
        if self.version >= SIGNING_TOKENS_SINCE:
            shown |= {f"{kind}_present": bool(hook.get(kind)) for kind in ("token", "signing_token")}
        return shown


def _too_many() -> Response:
    message = {"error": "This endpoint has been requested too many times. Try again later."}
    return JSONResponse({"message": message}, 429, {"Retry-After": "60"})


def _alert_status(hook: dict[str, Any]) -> str:
    until = hook.get("disabled_until")
    if hook.get("recent_failures", 0) >= MANY_FAILURES:
        return "disabled"
    return "temporarily_disabled" if until and until >= datetime.now(UTC) else "executable"
