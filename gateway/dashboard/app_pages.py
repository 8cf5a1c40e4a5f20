"""The page that makes a GitHub App for a source, and the address to which GitHub sends the browser back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.public_url import unreachable_hook
from gateway.api.source_app import page_of
from gateway.api.sources import Sources
from gateway.crypto.signed_tokens import SignedToken, SignedTokens
from gateway.dashboard.rendering import Renderer
from gateway.errors import Invalid
from gateway.provider_apis import app_manifest
from gateway.provider_apis.webhooks import Place
from gateway.store import source_apps, sources
from gateway.store.source_apps import CODE_VALID
from gateway.store.sources import Source
from providers.clone_urls import server_url

_MAX_CODE = 255
_CAN_BEGIN = {"none", "failed"}
_NOT_OURS = (
    "this answer of GitHub is older than an hour, or was not requested here: begin again on the page of the"
    " source's App"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppPages:
    """The handlers. The state that GitHub sends back proves that a page of ours has begun.

    GitHub's redirect may arrive without a session, so the state alone must prove it: it is signed, for one
    source and for one of its rounds, and valid for an hour.
    """

    sources: Sources
    renderer: Renderer

    async def show(self, request: Request) -> Response:
        """`GET /sources/{id}/app`: show how far the App is made, and what to do."""
        shown = await self.sources.get_source(request)
        path = f"/sources/{shown.id}/app"
        if shown.app is None:
            raise Invalid(f"{shown.name} needs no GitHub App: {_instead(shown.provider, shown.identity)}")
        if "setup_action" in request.query_params:
            # GitHub has sent the browser here from the installation, which can be listed now.
            await self.sources.database.write(
                sources.request_listing, source_id=shown.id, now=datetime.now(UTC)
            )
            self.sources.pushes.notify()
            return self.renderer.redirect(path)
        source, of_round = await self.sources.database.read(_begun, source_id=shown.id)
        offered = self._manifest(source, of_round) if shown.app.state in _CAN_BEGIN else None
        warning = unreachable_hook(self.sources.base_url, source.url)
        return self.renderer.page_with_form(
            "source-app.html",
            server_url(source.url),
            source=shown,
            offered=offered,
            path=path,
            warning=warning,
        )

    async def created(self, request: Request) -> Response:
        """`GET /sources/{id}/app/created`: take the code of a new App, which a worker exchanges."""
        source_id, query, now = request.path_params["id"], request.query_params, datetime.now(UTC)
        of_round = self._checked(source_id, query.get("state", ""), now=now)
        code = query.get("code", "")
        if not code or len(code) > _MAX_CODE or not code.isascii() or not code.isprintable():
            raise Invalid(_NOT_OURS)

        def receive(conn: sqlalchemy.Connection) -> None:
            source = sources.get(conn, source_id)
            source_apps.receive(conn, self.sources.keyring, source, code, of_round=of_round, now=now)

        await self.sources.database.write(receive)
        self.sources.pushes.notify()
        return self.renderer.redirect(f"/sources/{source_id}/app")

    def _manifest(self, source: Source, of_round: int) -> Mapping[str, Any]:
        """Return the manifest, and where a browser posts it."""
        place, page = Place(source.url, source.scope), page_of(source, self.sources.base_url)
        signed = self._states().issue(_subject(source.id, str(of_round)), now=datetime.now(UTC))
        state = f"{of_round}.{signed.expires}.{signed.signature}"
        wanted = app_manifest.manifest(
            place,
            hook_url=f"{self.sources.base_url}/hooks/{source.id}",
            base_url=self.sources.base_url,
            page=page,
        )
        return {
            "owner": place.owner("github").name,
            "manifest": wanted,
            "json": json.dumps(wanted),
            "for_organization": app_manifest.form_url(place, "organization", state),
            "for_user": app_manifest.form_url(place, "user", state),
        }

    def _checked(self, source_id: str, state: str, *, now: datetime) -> int:
        """Return the round of a state. Raise `Invalid` if it is old, or was not signed for this source."""
        of_round, _, rest = state.partition(".")
        expires, _, signature = rest.partition(".")
        subject, token = _subject(source_id, of_round), SignedToken(expires, signature)
        if not self._states().is_valid(subject, token, now=now):
            raise Invalid(_NOT_OURS)
        return int(of_round)

    def _states(self) -> SignedTokens:
        return SignedTokens(self.sources.keyring.app_state_key(), valid=CODE_VALID)


def _subject(source_id: str, of_round: str) -> str:
    return f"App of {source_id}\n{of_round}"


def _begun(conn: sqlalchemy.Connection, source_id: str) -> tuple[Source, int]:
    return sources.get(conn, source_id), source_apps.current_round(conn, source_id)


def _instead(provider: str, identity: str | None) -> str:
    return f"its provider is {provider}" if provider != "github" else f"it has the identity {identity}"
