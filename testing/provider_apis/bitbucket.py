"""A fake of Bitbucket Cloud's REST API for the webhooks of repositories, under `/2.0`.

https://developer.atlassian.com/cloud/bitbucket/rest/api-group-repositories/
"""

import re
import uuid
from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.provider_apis.bitbucket import EVENTS
from testing.provider_apis.fake import FakeApi, json_of

_PATH = re.compile(r"/2\.0/repositories/(?P<repository>[^/]+/[^/]+)/hooks(?:/(?P<id>[^/]+))?")
_MAX_PAGE = 100
_WRITTEN = ("description", "url", "active", "events", "secret")
_REQUIRED = ("description", "url", "events")


@dataclass(slots=True)
class FakeBitbucket(FakeApi):
    """Bitbucket Cloud with some repositories. `tokens` has the repositories that each token may administer.

    An API token (`ATATT…`) is that of the account `mail`. A token in `readers` lacks the scope of webhooks.
    """

    tokens: dict[str, set[str]] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    mail: str = "bot@acme.example"
    hooks: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    async def handle(self, request: Request) -> Response:
        """Answer as Bitbucket does."""
        found = _PATH.fullmatch(request.url.path)
        if found is None:
            return _error(404, "Resource not found")
        repository = found["repository"].lower()
        refused = self._refusal(request, repository)
        if refused is not None:
            return refused
        hooks = self.hooks.setdefault(repository, [])
        if found["id"] is None:
            return self._page(request, hooks) if request.method == "GET" else await self._add(request, hooks)
        hook = next((hook for hook in hooks if hook["uuid"] == found["id"]), None)
        if hook is None:
            return _error(404, "Resource not found")
        if request.method == "PUT":
            return await self._change(request, hook)
        hooks.remove(hook)
        return Response(status_code=204)

    def _refusal(self, request: Request, repository: str) -> Response | None:
        given = request.headers.get("authorization", "")
        token = next((token for token in self.tokens if given == self._authorization(token)), None)
        if token is None:
            return _error(401, "Token is invalid, expired, or not supported for this endpoint.")
        if repository not in self.tokens[token]:
            return _error(404, f"Repository {repository} not found")
        if token in self.readers:
            return _error(
                403,
                "Your credentials lack one or more required privilege scopes.",
                detail={"granted": ["repository"], "required": ["webhook"]},
            )
        return None

    def _authorization(self, token: str) -> str:
        if token.startswith("ATATT"):
            return f"Basic {b64encode(f'{self.mail}:{token}'.encode()).decode()}"
        return f"Bearer {token}"

    def _page(self, request: Request, hooks: list[dict[str, Any]]) -> Response:
        size = int(request.query_params.get("pagelen", "10"))
        if size > _MAX_PAGE:
            return _error(400, "Invalid pagelen")
        page = int(request.query_params.get("page", "1"))
        start = (page - 1) * size
        values = [_shown(hook) for hook in hooks[start : start + size]]
        body = {"pagelen": size, "size": len(hooks), "page": page, "values": values}
        if start + size < len(hooks):
            body["next"] = str(request.url.include_query_params(page=page + 1, pagelen=size))
        return JSONResponse(body)

    async def _add(self, request: Request, hooks: list[dict[str, Any]]) -> Response:
        wanted = await json_of(request)
        if refused := _invalid(wanted):
            return refused
        hook = {"type": "webhook_subscription", "uuid": f"{{{uuid.uuid4()}}}", "subject_type": "repository"}
        hook |= {key: wanted.get(key) for key in _WRITTEN}
        hooks.append(hook)
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


def _error(status: int, message: str, **more: Any) -> Response:
    return JSONResponse({"type": "error", "error": {"message": message, **more}}, status)
