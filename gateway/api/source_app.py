"""The GitHub App of a source, as the REST API and the dashboard show how far it is made."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

from gateway.api.schemas import one_of
from gateway.api.views import View
from gateway.provider_apis import app_manifest
from gateway.provider_apis.webhooks import Place
from gateway.store.identities import Identity
from gateway.store.source_apps import Exchange
from gateway.store.sources import Source

STATES = ("none", "pending", "failed", "created", "installed")
State = Literal["none", "pending", "failed", "created", "installed"]
AppState = TypeAliasType(
    "AppState",
    Annotated[
        str,
        one_of(
            STATES,
            "`none`, nobody has created it on its `page`; `pending`, a worker obtains its key from GitHub;"
            " `failed`, GitHub did not give it; `created`, it is to be installed at `install_url`;"
            " `installed`, its repositories were listed",
        ),
    ],
)


class SourceAppView(View):
    """The GitHub App of a source."""

    state: AppState = Field(description="how far it is made")
    page: str = Field(description="the page of the dashboard that creates it, and shows what is left to do")
    reason: str | None = Field(description="why it is not there, or why nothing could be listed with it")
    install_url: str | None = Field(
        description="the page of GitHub that installs it; null if Pushgate did not make it, or not yet"
    )


def page_of(source: Source, base_url: str) -> str:
    """Return the page of the dashboard about the App of a source."""
    return f"{base_url}/sources/{source.id}/app"


def app_of(
    source: Source, identity: Identity | None, exchange: Exchange | None, *, base_url: str
) -> Mapping[str, Any] | None:
    """Return the App of a source of GitHub; None if its identity is no App."""
    if source.provider != "github" or (identity is not None and identity.kind != "github-app"):
        return None
    state: State = "none"
    reason, slug = source.reason, None
    if identity is not None:
        state = "created" if source.listed_at is None else "installed"
        slug = identity.settings.get("slug")
    elif exchange is not None:
        reason = exchange.reason
        state = "pending" if exchange.is_pending else "failed" if reason else "none"
    return {
        "state": state,
        "page": page_of(source, base_url),
        "reason": reason,
        "install_url": app_manifest.install_url(Place(source.url, source.scope), slug) if slug else None,
    }
