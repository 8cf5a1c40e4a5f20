"""A fake of Bitbucket Cloud's REST API for webhooks and build statuses, under `/2.0`.

https://developer.atlassian.com/cloud/bitbucket/rest/api-group-repositories/ and …/api-group-workspaces/
https://developer.atlassian.com/cloud/bitbucket/rest/api-group-commit-statuses/
"""

import re
import uuid
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.provider_apis.bitbucket import EVENTS
from testing.provider_apis.fake import FakeApi, FakeRepository, json_of

_PATH = re.compile(
    r"/2\.0/(?:repositories/(?P<repository>[^/]+/[^/]+)|workspaces/(?P<workspace>[^/]+))/hooks(?:/(?P<id>[^/]+))?"
)
_STATUS = re.compile(
    r"/2\.0/repositories/(?P<repository>[^/]+/[^/]+)/commit/(?P<commit>[0-9a-f]{40})/statuses/build"
)
_LIST = re.compile(r"/2\.0/repositories/(?P<workspace>[^/]+)")
_ONE = re.compile(
    r"/2\.0/repositories/(?P<repository>[^/]+/[^/]+)"
    r"(?:/refs/branches/(?P<branch>.+)|/src/(?P<at>[^/]+)/(?P<path>.+))?"
)
_COMMIT = "1f" * 20
_MAX_PAGE = 100
_WRITTEN = ("description", "url", "active", "events", "secret")
_REQUIRED = ("description", "url", "events")
_STATES = frozenset({"INPROGRESS", "SUCCESSFUL", "FAILED", "STOPPED"})
_MOST = {"key": 40, "name": 255}
_LACKS_SCOPE = "Your credentials lack one or more required privilege scopes."


@dataclass(slots=True)
class FakeBitbucket(FakeApi):
    """Bitbucket Cloud with some repositories. `tokens` has the repositories that each token may administer.

    It also has the workspaces whose administrator the token is. An API token (`ATATT…`) is that of the
    account `mail`. A token in `readers` lacks the scope of webhooks, one in `blind` that of repositories.
    `builds` has the build statuses by repository, commit and key; the commits in `gone` are not there.
    """

    tokens: dict[str, set[str]] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    mail: str = "bot@acme.example"
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    blind: set[str] = field(default_factory=set)
    builds: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    status_writes: int = 0

    @property
    def statuses(self) -> Mapping[tuple[str, str], str]:
        """Return what people see: the state by commit and name."""
        return {(commit, build["name"]): build["state"] for (_, commit, _), build in self.builds.items()}

    async def handle(self, request: Request) -> Response:
        """Answer as Bitbucket does."""
        path = request.url.path
        found = (
            _PATH.fullmatch(path) or _STATUS.fullmatch(path) or _LIST.fullmatch(path) or _ONE.fullmatch(path)
        )
        if found is None:
            return _error(404, "Resource not found")
        named = found.groupdict()
        name = (named.get("repository") or named["workspace"]).lower()
        refused = self._refusal(request, name)
        if refused is not None:
            return refused
        if "commit" in named:
            return await self._set_status(request, name, found["commit"])
        return await self._hook(request, name, found) if "id" in named else self._read(request, name, named)

    async def _set_status(self, request: Request, name: str, commit: str) -> Response:
        """Overwrite the status with the same key, which only its author or an administrator may do."""
        token = self._token(request)
        if token in self.blind:
            return _error(403, _LACKS_SCOPE, detail={"granted": ["webhook"], "required": ["repository"]})
        if commit in self.gone:
            return _error(404, "Commit not found", data={"shas": [commit]})
        wanted = await json_of(request)
        if refused := _invalid_status(wanted):
            return refused
        place = (name, commit, wanted["key"])
        known = self.builds.get(place)
        if known and token in self.readers and known["author"] != token:
            return _error(403, "You do not have permission to update this build status.")
        self.status_writes += 1
        # A request without a field keeps it.
        self.builds[place] = {"name": wanted["key"], **(known or {}), **wanted, "author": token}
        shown = {key: value for key, value in self.builds[place].items() if key != "author"}
        return JSONResponse({"type": "build", **shown}, 200 if known else 201)

    def _read(self, request: Request, name: str, named: dict[str, str | None]) -> Response:
        """Return the repositories of a workspace, or a repository, a branch or a file of it."""
        if "/" not in name:
            return self._page(request, [self._described(one) for one in self.of_owner(name)])
        repository = next((one for one in self.repositories if one.full_name.lower() == name), None)
        if repository is None:
            return _error(404, f"Repository {name} not found")
        branch = repository.default_branch
        if named["branch"] is not None:
            commit = {"name": branch, "target": {"hash": _COMMIT}}
            return JSONResponse(commit) if named["branch"] == branch else _error(404, "No such branch")
        if named["path"] is None:
            return JSONResponse(self._described(repository))
        is_there = named["at"] in {branch, _COMMIT} and named["path"] in repository.files
        return JSONResponse({"type": "commit_file"}) if is_there else _error(404, "No such file or directory")

    def _described(self, repository: FakeRepository) -> dict[str, Any]:
        links = [
            {"name": "https", "href": self.clone_url(repository).replace("://", "://ada@", 1)},
            {"name": "ssh", "href": f"git@bitbucket.org:{repository.full_name}.git"},
        ]
        return {
            "uuid": repository.id,
            "full_name": repository.full_name,
            "mainbranch": {"name": repository.default_branch, "type": "branch"},
            "links": {"clone": links},
        }

    async def _hook(self, request: Request, name: str, found: re.Match[str]) -> Response:
        if self._token(request) in self.readers:
            return _error(
                403,
                _LACKS_SCOPE,
                detail={"granted": ["repository"], "required": ["webhook"]},
            )
        hooks = self.hooks.setdefault(name, [])
        if found["id"] is None:
            shown = [_shown(hook) for hook in hooks]
            return self._page(request, shown) if request.method == "GET" else await self._add(request, name)
        hook = next((hook for hook in hooks if hook["uuid"] == found["id"]), None)
        if hook is None:
            return _error(404, "Resource not found")
        if request.method == "PUT":
            return await self._change(request, hook)
        hooks.remove(hook)
        return Response(status_code=204)

    def _token(self, request: Request) -> str | None:
        given = request.headers.get("authorization", "")
        return next((token for token in self.tokens if given == self._authorization(token)), None)

    def _refusal(self, request: Request, name: str) -> Response | None:
        token = self._token(request)
        if token is None:
            return _error(401, "Token is invalid, expired, or not supported for this endpoint.")
        if not {name, name.partition("/")[0]} & self.tokens[token]:
            missing = (
                f"Repository {name} not found" if "/" in name else f"No workspace with identifier '{name}'."
            )
            return _error(404, missing)
        return None

    def _authorization(self, token: str) -> str:
        if token.startswith("ATATT"):
            return f"Basic {b64encode(f'{self.mail}:{token}'.encode()).decode()}"
        return f"Bearer {token}"

    def _page(self, request: Request, items: list[dict[str, Any]]) -> Response:
        size = int(request.query_params.get("pagelen", "10"))
        if size > _MAX_PAGE:
            return _error(400, "Invalid pagelen")
        page = int(request.query_params.get("page", "1"))
        start = (page - 1) * size
        body = {"pagelen": size, "size": len(items), "page": page, "values": items[start : start + size]}
        if start + size < len(items):
            body["next"] = str(request.url.include_query_params(page=page + 1, pagelen=size))
        return JSONResponse(body)

    async def _add(self, request: Request, name: str) -> Response:
        wanted = await json_of(request)
        if refused := _invalid(wanted):
            return refused
        subject = "repository" if "/" in name else "workspace"
        hook = {"type": "webhook_subscription", "uuid": f"{{{uuid.uuid4()}}}", "subject_type": subject}
        hook |= {key: wanted.get(key) for key in _WRITTEN}
        self.hooks[name].append(hook)
        return JSONResponse(_shown(hook), 201)

    async def _change(self, request: Request, hook: dict[str, Any]) -> Response:
        wanted = await json_of(request)
        if refused := _invalid(wanted):
            return refused
        # A request without `secret` keeps the secret.
        hook.update({key: wanted[key] for key in _WRITTEN if key in wanted})
        return JSONResponse(_shown(hook))


def _shown(hook: dict[str, Any]) -> dict[str, Any]:
    shown = {key: value for key, value in hook.items() if key != "secret"}
    return {**shown, "secret_set": bool(hook.get("secret"))}


def _invalid(wanted: dict[str, Any]) -> Response | None:
    fields = {key: ["This field may not be null."] for key in _REQUIRED if not wanted.get(key)}
    unknown = [event for event in wanted.get("events") or [] if event not in EVENTS]
    if unknown:
        fields["events"] = [f"Unknown event: {unknown[0]}"]
    return _error(400, "Bad request", fields=fields) if fields else None


def _invalid_status(wanted: dict[str, Any]) -> Response | None:
    fields = {key: ["This field is required."] for key in ("key", "state", "url") if not wanted.get(key)}
    for key, most in _MOST.items():
        if (length := len(wanted.get(key, ""))) > most:
            fields[key] = [f"Ensure this value has at most {most} characters (it has {length})."]
    if wanted.get("state", "FAILED") not in _STATES:
        fields["state"] = [f"{wanted['state']} is not a valid choice."]
    url = urlsplit(wanted.get("url", ""))
    if url.geturl() and (url.scheme not in {"http", "https"} or "." not in (url.hostname or "")):
        fields["url"] = ["Enter a valid URL."]
    first = next((f"{key}: {texts[0]}" for key, texts in fields.items()), "")
    return _error(400, first, fields=fields) if fields else None


def _error(status: int, message: str, **more: Any) -> Response:
    return JSONResponse({"type": "error", "error": {"message": message, **more}}, status)
