"""A fake of GitHub with one App: its API, its installations, and what their tokens may do.

https://docs.github.com/en/rest/apps
"""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from testing.provider_apis.fake import json_of, refusal
from testing.provider_apis.github import FakeGitHub

LIFETIME = timedelta(hours=1)
LONGEST_SIGN_IN = timedelta(minutes=10)
_API = "/api/v3"
_LEVELS = ("none", "read", "write", "admin")
_PERMISSIONS = {"/hooks": "repository_hooks", "/statuses/": "statuses", "/check-runs": "checks"}


def make_key() -> tuple[RSAPrivateKey, str]:
    """Return a new key of an App, and its file as GitHub writes it."""
    key = generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return key, pem.decode()


@dataclass(slots=True)
class Installation:
    """The installation of the App at an owner, with the permissions that the owner has accepted.

    `at` is `orgs` for an organisation, `users` for a user.
    """

    id: int
    owner: str
    repositories: list[str]
    permissions: dict[str, str]
    is_suspended: bool = False
    at: str = "orgs"


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A token of an installation. Its repositories have their full names."""

    value: str
    installation: Installation
    repositories: list[str]
    permissions: Mapping[str, str]
    expires_at: datetime


@dataclass(slots=True)
class FakeGitHubWithApp(FakeGitHub):
    """GitHub with an App, whose key is `key`; None if all its keys were deleted.

    `ahead` is how far the time of GitHub is ahead of this machine's. `next_token` makes the tokens, and
    `manifests` has the documents of the manifests that may be converted, by their codes.
    """

    key: RSAPrivateKey | None = None
    app_id: int = 4711
    client_id: str = "Iv23liFake"
    slug: str = "octo-gate"
    owner: dict[str, str] = field(default_factory=lambda: {"login": "acme", "type": "Organization"})
    permissions: dict[str, str] = field(default_factory=lambda: {"contents": "read", "metadata": "read"})
    events: list[str] = field(default_factory=lambda: ["push"])
    installations: list[Installation] = field(default_factory=list)
    issued: list[IssuedToken] = field(default_factory=list)
    ahead: timedelta = timedelta()
    next_token: Callable[[int], str] = "ghs_token{}".format
    hook_config: dict[str, Any] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def now(self) -> datetime:
        """Return the time of GitHub."""
        return datetime.now(UTC) + self.ahead

    @property
    def app(self) -> int | None:
        """The App whose tokens the requests have."""
        return self.app_id

    async def handle(self, request: Request) -> Response:
        """Answer as GitHub does."""
        path = request.url.path.removeprefix(_API)
        if "x-github-api-version" not in request.headers:
            return refusal(400, "the fake requires the header X-GitHub-Api-Version")
        if found := re.fullmatch(r"/app-manifests/([^/]+)/conversions", path):
            return self._convert(found[1])
        if path == "/installation/repositories":
            return self._repositories(request)
        if path.startswith("/app") or path.endswith("/installation"):
            return self._unsigned(request) or await self._as_app(request, path)
        return await FakeGitHub.handle(self, request)

    def _convert(self, code: str) -> Response:
        document = self.manifests.pop(code, None)
        return refusal(404, "Not Found") if document is None else JSONResponse(document, 201)

    async def _as_app(self, request: Request, path: str) -> Response:
        if found := re.fullmatch(r"/(repos|orgs|users)/(.+)/installation", path):
            return self._installation(found[1], found[2].lower())
        if found := re.fullmatch(r"/app/installations/(\d+)/access_tokens", path):
            return self._issue(int(found[1]), await json_of(request))
        if path == "/app/hook/config":
            if request.method == "PATCH":
                self.hook_config |= await json_of(request)
            hidden = {"secret": "********"} if "secret" in self.hook_config else {}
            return JSONResponse(self.hook_config | hidden)
        if found := re.fullmatch(r"/app/hook/deliveries(?:/(\d+)/attempts)?", path):
            return await self._log(request, {"id": self.app_id, "config": self.hook_config}, found[1])
        return JSONResponse(
            {
                "id": self.app_id,
                "slug": self.slug,
                "name": "Octo Gate",
                "html_url": f"{self.url}/github-apps/{self.slug}",
                "owner": self.owner,
                "permissions": self.permissions,
                "events": self.events,
            }
        )

    def _unsigned(self, request: Request) -> Response | None:
        """Return the refusal of a request that the App has not signed."""
        head, _, signature = request.headers.get("authorization", "").removeprefix("Bearer ").rpartition(".")
        try:
            algorithm, claims = (json.loads(_decoded(part)) for part in head.split("."))
        except ValueError:
            return refusal(401, "A JSON web token could not be decoded")
        if claims.get("iss") not in {str(self.app_id), self.client_id}:
            return refusal(404, "Integration not found")
        try:
            assert self.key is not None
            assert algorithm == {"alg": "RS256", "typ": "JWT"}
            self.key.public_key().verify(_decoded(signature), head.encode(), PKCS1v15(), SHA256())
        except (InvalidSignature, AssertionError):
            return refusal(401, "A JSON web token could not be decoded")
        return self._wrong_time(claims)

    def _wrong_time(self, claims: dict[str, Any]) -> Response | None:
        now = self.now.timestamp()
        if not isinstance(claims["iat"], int) or claims["iat"] > now:
            return refusal(
                401,
                "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was"
                " issued",
            )
        if claims["exp"] <= now:
            return refusal(
                401,
                "'Expiration time' claim ('exp') must be a numeric value representing the future time at"
                " which the assertion expires",
            )
        if claims["exp"] > now + LONGEST_SIGN_IN.total_seconds():
            return refusal(401, "'Expiration time' claim ('exp') is too far in the future")
        return None

    def _installation(self, kind: str, name: str) -> Response:
        found = next(
            (
                each
                for each in self.installations
                if (name in each.repositories if kind == "repos" else (kind, name) == (each.at, each.owner))
            ),
            None,
        )
        if found is None:
            return refusal(404, "Not Found")
        return JSONResponse(
            {
                "id": found.id,
                "app_id": self.app_id,
                "app_slug": self.slug,
                "html_url": f"{self.url}/organizations/{found.owner}/settings/installations/{found.id}",
                "permissions": found.permissions,
                "suspended_at": self.now.isoformat() if found.is_suspended else None,
            }
        )

    def _issue(self, installation: int, wanted: dict[str, Any]) -> Response:
        found = next((each for each in self.installations if each.id == installation), None)
        if found is None:
            return refusal(404, "Not Found")
        if found.is_suspended:
            return refusal(403, "This installation has been suspended")
        names = [f"{found.owner}/{name}".lower() for name in wanted.get("repositories", [])]
        if not set(names) <= set(found.repositories):
            return refusal(
                422,
                "There is at least one repository that does not exist or is not accessible to the parent"
                " installation.",
            )
        permissions = wanted.get("permissions", found.permissions)
        if not all(_allows(found.permissions, name, level) for name, level in permissions.items()):
            return refusal(422, "The permissions requested are not granted to this installation.")
        value = self.next_token(len(self.issued) + 1)
        expires_at = (self.now + LIFETIME).replace(microsecond=0)
        token = IssuedToken(value, found, names or found.repositories, permissions, expires_at)
        self.issued.append(token)
        return JSONResponse(
            {"token": value, "expires_at": f"{expires_at:%Y-%m-%dT%H:%M:%SZ}", "permissions": permissions},
            201,
        )

    def _repositories(self, request: Request) -> Response:
        token = self._token(request)
        if isinstance(token, Response):
            return token
        size, page = int(request.query_params.get("per_page", "30")), int(request.query_params.get("page", 1))
        names = token.repositories[(page - 1) * size : page * size]
        shown = [
            {
                "id": token.repositories.index(name) + 1,
                "full_name": name,
                "clone_url": f"{self.url}/{name}.git",
                "default_branch": "main",
                "archived": False,
            }
            for name in names
        ]
        headers = {}
        if page * size < len(token.repositories):
            following = request.url.include_query_params(page=page + 1, per_page=size)
            headers["Link"] = f'<{following}>; rel="next"'
        total = len(token.repositories)
        return JSONResponse({"total_count": total, "repositories": shown}, headers=headers)

    def _token(self, request: Request) -> IssuedToken | Response:
        """Return the token of a request, or the refusal of one that is not valid now."""
        value = request.headers.get("authorization", "").removeprefix("Bearer ")
        token = next((each for each in self.issued if each.value == value), None)
        if token is None or token.expires_at <= self.now:
            return refusal(401, "Bad credentials")
        if token.installation.is_suspended:
            return refusal(403, "This installation has been suspended")
        return token

    def _refusal(self, request: Request, name: str) -> Response | None:
        token = self._token(request)
        if isinstance(token, Response):
            return token
        if name not in {token.installation.owner, *token.repositories}:
            return refusal(404, "Not Found")
        permission, level = "contents", "read"
        for part, needed in _PERMISSIONS.items():
            if part in request.url.path:
                permission, level = needed, "read" if request.method == "GET" else "write"
        is_allowed = _allows(token.permissions, permission, level)
        return None if is_allowed else refusal(403, "Resource not accessible by integration")


def _allows(permissions: Mapping[str, str], name: str, level: str) -> bool:
    return _LEVELS.index(permissions.get(name, "none")) >= _LEVELS.index(level)


def _decoded(part: str) -> bytes:
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))
