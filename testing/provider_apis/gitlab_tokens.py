"""A fake of GitLab with the API of access tokens, beside that of webhooks.

https://docs.gitlab.com/api/personal_access_tokens/
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from testing.provider_apis.fake import json_of, refusal
from testing.provider_apis.gitlab import FakeGitLab

_SELF = "/api/v4/personal_access_tokens/self"


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token. Tokens that have replaced one another are of one family."""

    expires_at: date
    created_at: date
    scopes: tuple[str, ...] = ("api",)
    family: int = 0


@dataclass(slots=True)
class FakeGitLabTokens(FakeGitLab):
    """GitLab with access tokens; a revoked token is in `access_tokens`, but not in `tokens`.

    `max_lifetime` is the administrator's limit.
    """

    access_tokens: dict[str, AccessToken] = field(default_factory=dict)
    max_lifetime: timedelta = timedelta(days=365)

    async def handle(self, request: Request) -> Response:
        """Answer as GitLab does."""
        if not request.url.path.startswith(_SELF):
            return await FakeGitLab.handle(self, request)
        value = request.headers.get("private-token", "")
        token = self.access_tokens.get(value)
        is_rotation = request.method == "POST" and request.url.path == f"{_SELF}/rotate"
        if token is not None and is_rotation and value not in self.tokens:
            self._revoke_family(token)
        if token is None or value not in self.tokens:
            said = "Token was revoked. You have to re-authorize from the user."
            return JSONResponse({"error": "invalid_token", "error_description": said}, 401)
        if is_rotation:
            return self._rotate(value, token, await json_of(request))
        return JSONResponse(_fields(token))

    def _revoke_family(self, token: AccessToken) -> None:
        for value, other in self.access_tokens.items():
            if other.family == token.family:
                self.tokens.pop(value, None)

    def _rotate(self, value: str, token: AccessToken, wanted: dict[str, Any]) -> Response:
        if not {"api", "self_rotate"}.intersection(token.scopes):
            said = "The request requires higher privileges than provided by the access token."
            scope = {"error": "insufficient_scope", "error_description": said, "scope": "api self_rotate"}
            return JSONResponse(scope, 403)
        today = datetime.now(UTC).date()
        given = wanted.get("expires_at")
        ends = date.fromisoformat(given) if given else today + timedelta(days=7)
        if ends > (latest := today + self.max_lifetime):
            return refusal(400, f"400 Bad request - Expiration date must be before {latest}")
        self.next_id += 1
        new = f"glpat-rotated-{self.next_id}"
        self.tokens[new] = self.tokens.pop(value)
        self.access_tokens[new] = replace(token, created_at=today, expires_at=ends)
        return JSONResponse({**_fields(self.access_tokens[new]), "token": new})


def _fields(token: AccessToken) -> dict[str, Any]:
    return {
        "id": 42,
        "name": "pushgate",
        "revoked": False,
        "created_at": f"{token.created_at}T08:15:00.000Z",
        "scopes": token.scopes,
        "user_id": 1337,
        "active": True,
        "expires_at": token.expires_at.isoformat(),
    }
