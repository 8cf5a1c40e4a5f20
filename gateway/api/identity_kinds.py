"""The kinds of identities: for which providers they are, and what their settings and secrets must be."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gateway.api.schemas import IdentityChange, NewIdentity
from gateway.errors import Invalid
from gateway.fetch.credentials import read_app_key
from gateway.provider_apis.gitlab_tokens import DEPLOY_TOKEN
from gateway.store import identities
from gateway.store.identities import Identity, Kind
from providers import PROVIDERS

# Bitbucket Cloud's API takes these with the mail address of the account.
# https://support.atlassian.com/bitbucket-cloud/docs/using-api-tokens/
_WITH_MAIL_ADDRESS = "ATATT"
SECRETS = {"token", "private_key"}
"""The fields of requests with secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityKind:
    """A kind of identity. `takes` is the field of requests that has its secret.

    `read` returns a pasted secret in its original form, and `check` examines all of an identity; both raise
    `Invalid`.
    """

    providers: Collection[str]
    takes: str
    read: Callable[[str], str]
    check: Callable[[Identity, str], None]


def read_secret(kind: Kind, wanted: NewIdentity | IdentityChange) -> str | None:
    """Return the secret of a request, or None if it has none. Raises `Invalid`."""
    takes = KINDS[kind].takes
    for name in SECRETS - {takes}:
        if getattr(wanted, name) is not None:
            raise Invalid(f"{name}: an identity of the kind {kind} has none; give its {takes}")
    given = getattr(wanted, takes)
    return None if given is None else KINDS[kind].read(given.get_secret_value())


def check(identity: Identity, secret: str) -> None:
    """Raise `Invalid` if an identity lacks what its kind and its secret require."""
    kind = KINDS[identity.kind]
    if identity.provider not in kind.providers:
        raise Invalid(
            f"provider: it has no API for identities of the kind {identity.kind}; choose"
            f" {', '.join(kind.providers)}"
        )
    if not identities.host(identity):
        raise Invalid(f"api_url: {identity.provider} runs on many servers; give the URL of your server's API")
    if identity.rotates and not can_rotate(identity.provider, identity.kind, secret):
        raise Invalid("rotates: Pushgate can rotate only access tokens of GitLab, and no deploy tokens")
    kind.check(identity, secret)


def can_rotate(provider: str, kind: Kind, secret: str) -> bool:
    """Return whether the provider replaces a token on request of that token."""
    return provider == "gitlab" and kind == "token" and not secret.startswith(DEPLOY_TOKEN)


def _read_token(pasted: str) -> str:
    """Return a token without the white space around it."""
    token = pasted.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise Invalid("token: it must be one word of ASCII characters")
    return token


def _check_token(identity: Identity, token: str) -> None:
    if identity.settings:
        raise Invalid("settings: an identity of the kind token has none")
    is_api_token = identity.provider == "bitbucket" and token.startswith(_WITH_MAIL_ADDRESS)
    if is_api_token and identity.user is None:
        raise Invalid("user: an API token of Bitbucket Cloud requires the mail address of its account")


def _check_app(identity: Identity, _key: str) -> None:
    if "app_id" not in identity.settings:
        raise Invalid("settings.app_id: it is required: the App ID, or the client ID, of the GitHub App")
    if identity.user is not None:
        raise Invalid("user: an identity of the kind github-app has none")


KINDS: Mapping[Kind, IdentityKind] = {
    "token": IdentityKind(
        providers=tuple(name for name in PROVIDERS if name != "generic"),
        takes="token",
        read=_read_token,
        check=_check_token,
    ),
    "github-app": IdentityKind(
        providers=("github",), takes="private_key", read=read_app_key, check=_check_app
    ),
}
