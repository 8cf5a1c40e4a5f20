"""A fake of GitHub that makes Apps of manifests.

https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-from-a-manifest
"""

import json
import re
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from testing.provider_apis.fake import refusal
from testing.provider_apis.github_app import FakeGitHubWithApp, make_key

_LIFETIME = timedelta(hours=1)
_FORM = re.compile(r"(?:/organizations/(?P<organization>[^/]+))?/settings/apps/new")
_NEEDED = {
    "name",
    "url",
    "hook_attributes",
    "redirect_url",
    "public",
    "default_permissions",
    "default_events",
}


@dataclass(slots=True)
class FakeGitHubMakingApps(FakeGitHubWithApp):
    """GitHub that makes its only App when somebody sends a manifest.

    A real user sees the settings first, and confirms them. `codes` has until when each code works.
    """

    name: str = ""
    pem: str = ""
    codes: dict[str, datetime] = field(default_factory=dict)

    async def handle(self, request: Request) -> Response:
        """Answer as GitHub does."""
        if found := _FORM.fullmatch(request.url.path):
            return self._create(
                await request.body(), request.query_params.get("state"), found["organization"]
            )
        return await FakeGitHubWithApp.handle(self, request)

    def _create(self, body: bytes, state: str | None, organization: str | None) -> Response:
        wanted = json.loads(parse_qs(body.decode())["manifest"][0])
        if missing := _NEEDED - wanted.keys():
            return refusal(422, f"Invalid GitHub App configuration: {min(missing)} is missing")
        if len(wanted["name"]) > 34 or wanted["name"] == self.name:
            return refusal(422, "Name is too long, or already taken")
        self.name, self.slug = wanted["name"], wanted["name"].lower().replace(" ", "-")
        kind = "User" if organization is None else "Organization"
        self.owner = {"login": organization or "ada", "type": kind}
        self.permissions, self.events = wanted["default_permissions"], wanted["default_events"]
        self.key, self.pem = make_key()
        secret = secrets.token_hex(20)
        self.hook_config = {"url": wanted["hook_attributes"]["url"], "secret": secret}
        code = secrets.token_hex(20)
        self.codes[code] = self.now + _LIFETIME
        self.manifests[code] = self._shown(secret)
        query = {"code": code} | ({} if state is None else {"state": state})
        return RedirectResponse(f"{wanted['redirect_url']}?{urlencode(query)}", 302)

    def _shown(self, secret: str) -> dict[str, Any]:
        return {
            "id": self.app_id,
            "slug": self.slug,
            "name": self.name,
            "owner": self.owner,
            "html_url": f"{self.url}/github-apps/{self.slug}",
            "client_id": self.client_id,
            "client_secret": "canary-client-secret",
            "webhook_secret": secret,
            "pem": self.pem,
            "permissions": self.permissions,
            "events": self.events,
        }

    def _convert(self, code: str) -> Response:
        if code in self.codes and self.codes[code] <= self.now:
            return refusal(404, "Not Found")
        document = self.manifests.pop(code, None)
        return refusal(404, "Not Found") if document is None else JSONResponse(document, 201)
