"""The answers of the REST API about sources."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, get_args

from pydantic import Field
from typing_extensions import TypeAliasType

from gateway.api.connection_views import SecretView
from gateway.api.schemas import Page, Provider, ShownAs, one_of
from gateway.api.source_app import SourceAppView, app_of
from gateway.api.views import View, view_of
from gateway.plan.source_rules import Rule
from gateway.store import source_repositories, sources
from gateway.store.connections import SecretDates
from gateway.store.identities import Identity
from gateway.store.source_apps import Exchange
from gateway.store.sources import Source

SourceScope = TypeAliasType(
    "SourceScope",
    Annotated[
        str,
        one_of(
            get_args(sources.Scope),
            "`owner`, the repositories of an organisation, group, workspace or project; `server`, all"
            " repositories of a server",
        ),
    ],
)
RepositoryState = TypeAliasType(
    "RepositoryState",
    Annotated[
        str,
        one_of(
            get_args(source_repositories.State),
            "`due` until the rules have decided; then `connected`, or `ignored`, by no rule; `gone`, no"
            " repository of the source any more; `removed`, somebody has deleted its connection",
        ),
    ],
)


class SourceView(View):
    """A source as it is shown."""

    id: str = Field(
        description="the id, which is also in the webhook URL", examples=["7a1c6c2d9a7e4b3c8d0e1f2a"]
    )
    name: str = Field(description="the unique name", examples=["acme"])
    provider: Provider = Field(description="the kind of git server that sends the webhooks")
    url: str = Field(
        description="the web page of the owner or the server", examples=["https://github.com/acme"]
    )
    scope: SourceScope = Field(description="whose repositories it has")
    hook_url: str = Field(
        description="the webhook URL for the provider's settings, for all repositories of the source",
        examples=["https://pushgate.example.com/hooks/7a1c6c2d9a7e4b3c8d0e1f2a"],
    )
    rules: list[Annotated[dict[str, Any], ShownAs(Rule)]] = Field(
        description="which repositories are connected, and how: the first rule that matches counts"
    )
    auth: Mapping[str, str] = Field(
        description="the parts of the authentication that are not secret; empty for most providers"
    )
    networks: Sequence[str] = Field(description="the networks that may send webhooks; empty if any may")
    identity: str | None = Field(description="the name of the identity; null if there is none")
    app: SourceAppView | None = Field(
        description="its GitHub App; null for other providers, and for an identity of another kind"
    )
    repositories: Mapping[str, int] = Field(
        description="how many repositories are in each state; states without a repository are left out",
        examples=[{"connected": 12, "ignored": 3}],
    )
    listed_at: datetime | None = Field(
        description="when its repositories were listed last; null if they never were"
    )
    reason: str | None = Field(
        description="why the last listing failed, or has not been done yet; null if it succeeded"
    )
    secrets: list[SecretView] = Field(
        description="the valid webhook secrets without their values, newest first"
    )
    created_at: datetime = Field(description="when it was added")
    updated_at: datetime = Field(description="when its settings last changed")

    @classmethod
    def of(
        cls,
        source: Source,
        secrets: Sequence[SecretDates],
        repositories: Mapping[str, int],
        identity: Identity | None,
        exchange: Exchange | None,
        *,
        base_url: str,
    ) -> "SourceView":
        """Return the view of a source with its identity, and the last code of its App, without secrets."""
        return view_of(
            cls,
            source,
            hook_url=f"{base_url}/hooks/{source.id}",
            rules=list(source.rules),
            identity=identity.name if identity is not None else None,
            app=app_of(source, identity, exchange, base_url=base_url),
            repositories=repositories,
            secrets=secrets,
        )


class SourceCreated(SourceView):
    """A new source, or a source with a new secret: the only answers that contain a secret."""

    secret: str = Field(description="the webhook secret for the provider's settings: store it now")
    warnings: list[str] = Field(
        default_factory=list,
        description="sentences about a webhook URL that the provider cannot reach",
    )


class SourcePage(Page[SourceView]):
    """A page of sources."""


class SourceRepositoryView(View):
    """A repository of a source: its connection, or the reason why it has none."""

    id: str = Field(description="the provider's id of the repository", examples=["1296269"])
    full_name: str = Field(description="the full name", examples=["acme/digits"])
    url: str = Field(description="the clone URL")
    default_branch: str | None = Field(description="the default branch; null if it is unknown")
    state: RepositoryState = Field(description="what the rules have decided")
    connection: str | None = Field(description="the id of its connection; null if it has none")
    reason: str | None = Field(description="why it has no connection, or why the decision is late")
    seen_at: datetime = Field(description="when a listing or a delivery named it last")


class SourceRepositoryPage(Page[SourceRepositoryView]):
    """A page of the repositories of a source."""
