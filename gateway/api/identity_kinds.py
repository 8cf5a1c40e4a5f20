"""The kinds of identities: for which providers they are, and what their settings and secrets must be."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

from gateway.api.identity_schemas import IdentityChange, NewIdentity
from gateway.errors import Invalid
from gateway.fetch.credentials import read_app_key
from gateway.provider_apis.client_certificate import read_certificate
from gateway.provider_apis.gitlab_tokens import DEPLOY_TOKEN
from gateway.store import identities
from gateway.store.identities import Identity, Kind
from providers import PROVIDERS

# Bitbucket Cloud's API takes these with the mail address of the account.
# https://support.atlassian.com/bitbucket-cloud/docs/using-api-tokens/
_WITH_MAIL_ADDRESS = "ATATT"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityKind:
    """A kind of identity.

    `secrets` has the fields of requests with the secret, by the setting `credential`; None if an identity has
    no secret. `check` examines all of an identity, and raises `Invalid`.
    """

    providers: Collection[str]
    secrets: Mapping[str, str | None]
    check: Callable[[Identity, str], None]


def takes(kind: Kind, settings: Mapping[str, str]) -> str | None:
    """Return the field of requests that has the secret of an identity, if it has one. Raises `Invalid`."""
    secrets = KINDS[kind].secrets
    credential = settings.get("credential", "")
    if credential in secrets:
        return secrets[credential]
    if credential:
        raise Invalid(f"settings.credential: an identity of the kind {kind} has none")
    raise Invalid(f"settings.credential: it is required; choose {', '.join(secrets)}")


def read_secret(kind: Kind, settings: Mapping[str, str], wanted: NewIdentity | IdentityChange) -> str | None:
    """Return the secret of a request, or None if it has none. Raises `Invalid`."""
    taken = takes(kind, settings)
    for name in SECRETS - {taken}:
        if getattr(wanted, name) is not None:
            which = f"kind {kind}" + (f" with a {settings['credential']}" if kind == "entra" else "")
            other = f"; give its {taken}" if taken else ""
            raise Invalid(f"{name}: an identity of the {which} has none{other}")
    given = None if taken is None else getattr(wanted, taken)
    return None if given is None or taken is None else _READ[taken](given.get_secret_value())


def without_secret(kind: Kind, settings: Mapping[str, str]) -> str:
    """Return the empty secret of an identity that needs none. Raises `Invalid` for others."""
    taken = takes(kind, settings)
    if taken is not None:
        raise Invalid(f"{taken}: it is required")
    return ""


def checked(identity: Identity, secret: str) -> Identity:
    """Return an identity with the end of its certificate, if it has one.

    Raises `Invalid` if it lacks what its kind and its secret require.
    """
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
    if identity.settings.get("credential") == "certificate":
        return replace(identity, expires_at=read_certificate(secret).expires_at)
    return identity


def can_rotate(provider: str, kind: Kind, secret: str) -> bool:
    """Return whether the provider replaces a token on request of that token."""
    return provider == "gitlab" and kind == "token" and not secret.startswith(DEPLOY_TOKEN)


def _read_word(pasted: str, *, name: str) -> str:
    """Return a token without the white space around it."""
    word = pasted.strip()
    if not word or not word.isascii() or not word.isprintable() or " " in word:
        raise Invalid(f"{name}: it must be one word of ASCII characters")
    return word


def _read_certificate(pasted: str) -> str:
    return read_certificate(pasted).as_pem()


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


def _check_entra(identity: Identity, secret: str) -> None:
    if identity.user is not None or identity.api_url is not None:
        raise Invalid("api_url, user: an identity of the kind entra is for dev.azure.com, and needs neither")
    credential = identity.settings["credential"]
    for name in ("tenant", "client_id"):
        if secret and name not in identity.settings:
            raise Invalid(f"settings.{name}: it is required with a {credential}")
    if credential == "managed-identity" and "tenant" in identity.settings:
        raise Invalid("settings.tenant: a managed identity has that of its machine")


_READ: Mapping[str, Callable[[str], str]] = {
    "token": partial(_read_word, name="token"),
    "private_key": read_app_key,
    "client_secret": partial(_read_word, name="client_secret"),
    "certificate": _read_certificate,
}
SECRETS = set(_READ)
"""The fields of requests with secrets."""

KINDS: Mapping[Kind, IdentityKind] = {
    "token": IdentityKind(
        providers=tuple(name for name in PROVIDERS if name != "generic"),
        secrets={"": "token"},
        check=_check_token,
    ),
    "github-app": IdentityKind(providers=("github",), secrets={"": "private_key"}, check=_check_app),
    "entra": IdentityKind(
        providers=("azure-devops",),
        secrets={
            "client-secret": "client_secret",
            "certificate": "certificate",
            "workload-identity": None,
            "managed-identity": None,
        },
        check=_check_entra,
    ),
}
