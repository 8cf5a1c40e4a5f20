"""What all providers' webhook APIs have in common, and how registered webhooks are brought in order."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Literal, Protocol
from urllib.parse import urlsplit

from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.operation import ApiRefused, Operation
from providers.places import Owner, owner_of
from providers.signatures import SIGNING_PREFIX

Scope = Literal["repository", "owner", "server"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a webhook is: at a repository, at the owner of repositories, or at a whole server.

    `url` is the clone URL of a repository. Of an owner, which is an organisation, group, workspace or project
    in the words of the provider, it is the address of its page; of a server, the address of its start page.
    """

    url: str
    scope: Scope = "repository"

    @property
    def noun(self) -> str:
        """Return what errors call the place."""
        return _NOUNS[self.scope]

    def owner(self, provider: str) -> Owner:
        """Return the owner that the URL names. Raise `ApiRefused` if it names none."""
        try:
            return owner_of(self.url, provider)
        except ValueError as error:
            raise ApiRefused(str(error), status=HTTPStatus.OK) from None


_NOUNS: Mapping[Scope, str] = {
    "repository": "repository",
    "owner": "organisation, group, workspace or project",
    "server": "API for administrators",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRepository:
    """A repository of an owner, or of a server.

    `id` is the one that payloads of the provider's webhooks have. `url` is the https clone URL.
    `default_branch` is None if the repository is empty, or if the list does not show it. An archived one, or
    a disabled one, cannot be pushed to.
    """

    id: str
    full_name: str
    url: str
    default_branch: str | None = None
    is_archived: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A webhook as it should be. `events` are in the provider's words.

    `auth` has the settings of the connection's provider, which say where the secret is expected.
    """

    url: str
    secret: str = field(repr=False)
    events: frozenset[str]
    auth: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def has_signing_secret(self) -> bool:
        """Return whether the secret is a signing secret, which some providers have beside plain ones."""
        return self.secret.startswith(SIGNING_PREFIX.decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredWebhook:
    """A webhook as the provider has it.

    `has_secret` and `has_signing_secret` are None if the provider does not show them. If `is_filtered`, some
    branches are not reported. `problem` is the provider's last result in its own words, None if the last
    delivery succeeded, or if the provider does not show it. `advice` says what only a person can correct, as
    a sentence without a full stop; of the differences, those are its events and, if it `lacks_permissions`,
    the permissions.
    """

    id: str
    url: str
    events: frozenset[str]
    is_active: bool = True
    has_secret: bool | None = None
    has_signing_secret: bool | None = None
    is_filtered: bool = False
    problem: str | None = None
    lacks_permissions: bool = False
    advice: str | None = None


class WebhookApi(Protocol):
    """The operations on the webhooks of a place. Every function is pure."""

    def webhooks(self, place: Place) -> Operation[Sequence[RegisteredWebhook]]:
        """Return all webhooks of a place."""

    def create(self, place: Place, webhook: Webhook) -> Operation[RegisteredWebhook]:
        """Create a webhook."""

    def change(self, place: Place, webhook_id: str, webhook: Webhook) -> Operation[RegisteredWebhook]:
        """Set URL, secret and events of a webhook, for all branches, and activate it.

        Where the API cannot change a secret, the result is another webhook in its place, with another id.
        """

    def delete(self, place: Place, webhook_id: str) -> Operation[None]:
        """Delete a webhook, or do nothing if it is gone."""

    def test(self, place: Place, webhook_id: str) -> Operation[bool]:
        """Request a test delivery that executes nothing; return False if the provider has none."""


class ProviderApi(WebhookApi, Protocol):
    """The functions that each provider's module has. Every function is pure."""

    EVENTS: frozenset[str]
    """The events that Pushgate needs, in the provider's words."""

    SCOPES: frozenset[Scope]
    """The scopes that the provider has webhooks for; every place is of one of them."""

    RIGHTS: Mapping[Scope, str]
    """The rights that the identity needs for webhooks of a scope, in the provider's words."""

    READ_RIGHT: str
    """The right that it needs to list repositories and to look for a file in them."""

    REQUESTS_PER_HOUR: int
    """How many requests an identity may send in an hour."""

    WRITE_LIMITS: Sequence[WriteLimit]
    """How many of them may write; empty if the provider has no such limit."""

    HEADERS: Mapping[str, str]
    """The headers of each request, beside those of the identity."""

    def base_url(self, place: Place) -> str:
        """Return the base URL of the API of a place's server."""

    def authorization(self, token: str, *, user: str | None = None) -> Mapping[str, str]:
        """Return the headers with a token, for a user where the provider wants one."""

    def repositories(self, place: Place) -> Operation[Sequence[ListedRepository]]:
        """Return all repositories of an owner or a server that the identity may see."""

    def has_file(self, clone_url: str, path: str, branch: str | None) -> Operation[bool]:
        """Return whether a branch has a file; None is the default branch.

        Return False as well if there is no such branch or repository.
        """


Difference = Literal[
    "missing",
    "switched off",
    "wrong URL",
    "no secret",
    "wrong secret",
    "missing events",
    "missing permissions",
    "branch filter",
    "doubled",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What brings a place's webhooks in order: at most one is kept and, if it differs, changed.

    `keep` is None if a webhook has to be created. `remove` are others of ours.
    """

    keep: RegisteredWebhook | None
    remove: tuple[RegisteredWebhook, ...]
    differences: tuple[Difference, ...]


def compare(
    registered: Collection[RegisteredWebhook], wanted: Webhook, *, earlier_urls: Collection[str] = ()
) -> Repair:
    """Compare the registered webhooks of a place with the wanted one.

    Ours are those with its URL, or with one of the connection's earlier URLs; all others are left alone.
    """
    addresses = {address(url) for url in (wanted.url, *earlier_urls)}
    ours = [hook for hook in registered if address(hook.url) in addresses]
    ours.sort(key=lambda hook: (hook.url != wanted.url, not hook.is_active, not hook.events >= wanted.events))
    if not ours:
        return Repair(keep=None, remove=(), differences=("missing",))
    keep, *others = ours
    found: dict[Difference, bool] = {
        "switched off": not keep.is_active,
        "wrong URL": keep.url != wanted.url,
        "no secret": keep.has_secret is False,
        "wrong secret": bool(keep.has_secret)
        and keep.has_signing_secret is False
        and wanted.has_signing_secret,
        "missing events": not keep.events >= wanted.events,
        "missing permissions": keep.lacks_permissions,
        "branch filter": keep.is_filtered,
        "doubled": bool(others),
    }
    differences = tuple(difference for difference, is_found in found.items() if is_found)
    return Repair(keep=keep, remove=tuple(others), differences=differences)


def address(url: str) -> tuple[str, str]:
    """Return host and path of a webhook's URL. A changed scheme or port is a difference, not another hook."""
    parts = urlsplit(url)
    return (parts.hostname or "").lower(), parts.path.rstrip("/")
