"""A fake of Bitbucket Data Center's REST API for webhooks and build statuses.

https://developer.atlassian.com/server/bitbucket/rest/
"""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.provider_apis.bitbucket_server import EVENTS
from providers import bitbucket_server
from testing.provider_apis.fake import FakeApi, FakeRepository, json_of

_PATH = re.compile(
    r"/rest/api/latest/projects/(?P<project>[^/]+)(?:/repos/(?P<slug>[^/]+))?"
    r"(?:/webhooks(?:/(?:\d+|test))?|/repos|/browse/(?P<path>.+)|/commits/(?P<commit>[^/]+)/builds)"
)
_OLD_STATUS = re.compile(r"/rest/build-status/1\.0/commits/(?P<commit>[0-9a-f]{40})")
_STATES = frozenset({"INPROGRESS", "SUCCESSFUL", "FAILED"})
_NEW_STATES = frozenset({"CANCELLED", "UNKNOWN"})
_MAX_TEXT = 255
_PACKAGE = "com.atlassian.bitbucket"
_WRITTEN = ("name", "url", "active", "configuration", "events", "sslVerificationRequired")


@dataclass(slots=True)
class FakeBitbucketServer(FakeApi):
    """Data Center with some repositories. `tokens` has the repositories that each token may administer.

    It also has the projects that the token may administer, in lower case. A token in `readers` sees all of
    these and may not administer them. `builds` has the build statuses by repository, commit and key; those of
    the API before 7.4 are of no repository. The commits in `gone` are not there.
    """

    tokens: dict[str, set[str]] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    next_id: int = 10
    version: tuple[int, int] = (8, 19)
    builds: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    status_writes: int = 0

    @property
    def statuses(self) -> Mapping[tuple[str, str], str]:
        """Return what people see: the state by commit and name."""
        return {(commit, build["name"]): build["state"] for (_, commit, _), build in self.builds.items()}

    async def handle(self, request: Request) -> Response:
        """Answer as Bitbucket does: with the user's name, and the seconds to wait, which are none."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            text = "Authentication failed. Please check your credentials and try again."
            return _error(401, text, f"{_PACKAGE}.auth.IncorrectPasswordAuthenticationException")
        answer = await self._answer(request, token)
        answer.headers.update({"X-AUSERNAME": "bot", "Retry-After": "0"})
        return answer

    async def _answer(self, request: Request, token: str) -> Response:
        if old := _OLD_STATUS.fullmatch(request.url.path):
            # It accepts commits of any repository, and those that are nowhere.
            return await self._set_status(request, "", old["commit"])
        if refused := self._refusal(request, token):
            return refused
        is_build = request.url.path.endswith("/builds")
        return await (self._set_build(request, _place(request).lower()) if is_build else self._do(request))

    def _refusal(self, request: Request, token: str) -> Response | None:
        name = _place(request)
        if not {name.lower(), name.lower().partition("/")[0]} & self.tokens[token]:
            kind = "Repository" if "/" in name else "Project"
            text = f"{kind} {name} does not exist."
            return _error(404, text, f"{_PACKAGE}.{kind.lower()}.NoSuch{kind}Exception")
        # Not 403.
        text = "You are not permitted to access this resource"
        is_refused = token in self.readers and "/webhooks" in request.url.path
        return _error(401, text, f"{_PACKAGE}.AuthorisationException") if is_refused else None

    async def _do(self, request: Request) -> Response:
        name = _place(request).lower()
        if "/webhooks" not in request.url.path:
            return self._read(request, name)
        hooks = self.hooks.setdefault(name, [])
        id_ = request.url.path.partition("/webhooks/")[2]
        match request.method, id_:
            case "GET", "":
                return self._page(request, [_shown(hook) for hook in hooks])
            case "POST", "":
                return await self._add(request, name)
            case "POST", "test":
                return await self._test(request)
        hook = next((hook for hook in hooks if str(hook["id"]) == id_), None)
        if hook is None:
            return _error(404, f"No webhook with id {id_}", "com.atlassian.webhooks.NoSuchWebhookException")
        return await self._act(request, hooks, hook)

    def _read(self, request: Request, name: str) -> Response:
        """Return the repositories of a project, or the type of an entry of a repository."""
        if "/" not in name:
            return self._page(request, [self._described(one) for one in self.of_owner(name)])
        found, at = _PATH.fullmatch(request.url.path), request.query_params.get("at")
        branch = None if at is None else at.removeprefix("refs/heads/")
        if found and self.has_file(name, found["path"], branch):
            return JSONResponse({"type": "FILE"})
        text = f'The path "{found and found["path"]}" does not exist at revision "{at}"'
        return _error(404, text, f"{_PACKAGE}.content.NoSuchPathException")

    async def _set_build(self, request: Request, name: str) -> Response:
        found = _PATH.fullmatch(request.url.path)
        commit = found["commit"] if found else ""
        if self.version < (7, 4):
            return JSONResponse({"message": f"null for uri: {request.url}", "status-code": 404}, 404)
        if commit in self.gone:
            text = f"Commit '{commit}' does not exist in repository '{name.partition('/')[2]}'."
            return _error(404, text, f"{_PACKAGE}.commit.NoSuchCommitException")
        return await self._set_status(request, name, commit)

    async def _set_status(self, request: Request, name: str, commit: str) -> Response:
        """Overwrite the status with the same key, and answer without a document."""
        wanted = await json_of(request)
        states = _STATES | (_NEW_STATES if self.version >= (8, 0) else frozenset())
        if refused := _invalid_status(wanted, states):
            return refused
        self.status_writes += 1
        self.builds[name, commit, wanted["key"]] = wanted
        return Response(status_code=204)

    def _described(self, repository: FakeRepository) -> dict[str, Any]:
        project, _, slug = repository.full_name.partition("/")
        url = repository.url or f"{self.url}/scm/{project.lower()}/{slug}.git"
        links = [
            {"name": "ssh", "href": f"ssh://git@127.0.0.1:7999/{project.lower()}/{slug}.git"},
            {"name": "http", "href": url},
        ]
        return {
            "id": int(repository.id),
            "slug": slug,
            "project": {"key": project},
            "archived": repository.is_archived,
            "links": {
                "clone": links,
                "self": [{"href": f"{self.url}/projects/{project}/repos/{slug}/browse"}],
            },
        }

    async def _act(self, request: Request, hooks: list[dict[str, Any]], hook: dict[str, Any]) -> Response:
        if request.method == "DELETE":
            hooks.remove(hook)
            return Response(status_code=204)
        if request.method == "PUT":
            wanted = await json_of(request)
            hook.update({key: wanted[key] for key in _WRITTEN})
        return JSONResponse(_shown(hook))

    def _page(self, request: Request, items: list[dict[str, Any]]) -> Response:
        limit = min(int(request.query_params.get("limit", "25")), 100)
        start = int(request.query_params.get("start", "0"))
        values = items[start : start + limit]
        is_last = start + limit >= len(items)
        body = {"size": len(values), "limit": limit, "start": start, "isLastPage": is_last, "values": values}
        return JSONResponse(body if is_last else {**body, "nextPageStart": start + limit})

    async def _add(self, request: Request, name: str) -> Response:
        wanted = await json_of(request)
        unknown = [event for event in wanted["events"] if event not in EVENTS]
        if unknown:
            return _error(400, f"{unknown[0]} is not a known webhook event", None, context="events")
        self.next_id += 1
        scope = "repository" if "/" in name else "project"
        hook = {"id": self.next_id, "scopeType": scope, **{key: wanted[key] for key in _WRITTEN}}
        self.hooks[name].append(hook)
        return JSONResponse(_shown(hook), 201)

    async def _test(self, request: Request) -> Response:
        """Send a ping, which is not signed, and answer with its result."""
        url = request.query_params.get("url")
        if not url:
            return _error(400, "A URL is required", None, context="url")
        body, delivery, now = b'{"test":true}', str(uuid.uuid4()), datetime.now(UTC)
        headers = bitbucket_server.sign(
            event="diagnostics:ping", body=body, secret=b"", delivery=delivery, now=now
        )
        try:
            async with httpx2.AsyncClient() as http:
                answer = await http.post(url, content=body, headers=headers)
            outcome = "SUCCESS" if answer.is_success else "FAILURE"
            result = {"outcome": outcome, "description": str(answer.status_code)}
        except httpx2.HTTPError as error:
            result = {"outcome": "ERROR", "description": str(error)}
        return JSONResponse({"request": {"url": url}, "result": result})


def _place(request: Request) -> str:
    """Return project and slug of a request's path, or only a project, or nothing for another path."""
    found = _PATH.fullmatch(request.url.path)
    return "/".join(part for part in found.group("project", "slug") if part) if found else ""


def _shown(hook: dict[str, Any]) -> dict[str, Any]:
    configuration = dict(hook["configuration"])
    if "secret" in configuration:
        configuration["secret"] = "*****"
    return {**hook, "configuration": configuration}


def _invalid_status(wanted: dict[str, Any], states: frozenset[str]) -> Response | None:
    for name in ("key", "state", "url"):
        if not wanted.get(name):
            return _error(400, f"Please specify a valid {name}", None)
    for name in ("key", "name"):
        if len(wanted.get(name, "")) > _MAX_TEXT:
            return _error(400, f"Please enter at most {_MAX_TEXT} characters", None, context=name)
    if wanted["state"] not in states:
        return _error(400, "Please specify a valid build state", None)
    url = urlsplit(wanted["url"])
    is_link = url.scheme in {"http", "https"} and url.hostname
    return None if is_link else _error(400, "Please specify a valid url", None)


def _error(status: int, message: str, exception: str | None, *, context: str | None = None) -> Response:
    errors = [{"context": context, "message": message, "exceptionName": exception}]
    return JSONResponse({"errors": errors}, status)
