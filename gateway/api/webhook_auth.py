"""How a connection's webhooks are verified: from an API request to valid secrets and public options."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy

from gateway.crypto.keyring import Keyring
from gateway.errors import Invalid, SettingError
from gateway.provider_apis import standard_webhook
from gateway.store import connections
from gateway.store.connections import Connection
from providers import PROVIDERS
from providers.signatures import MIN_SECRET_BYTES, SIGNING_PREFIX, is_weak, signing_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """`secrets` are valid from the start, the newest last; `auth` contains no secret."""

    secrets: tuple[str, ...]
    auth: Mapping[str, str]


def new_secret(provider: str, *, newest: bytes | None = None) -> str:
    """Return a fresh webhook secret in the provider's form, of the kind of the `newest` secret before it.

    A provider with plain tokens and signing tokens, such as GitLab, gets another plain token after a plain
    token: beside a signing token, a plain token no longer suffices, and every delivery would be refused until
    the provider has the new secret.
    """
    facts = PROVIDERS[provider]
    is_plain = newest is not None and not newest.startswith(SIGNING_PREFIX)
    if facts.HAS_SIGNING_SECRETS and not (is_plain and "signing_token" in facts.AUTH_OPTIONS):
        return standard_webhook.new_secret()
    return secrets.token_hex(32)


def read_scheme(provider: str, secret: str | None, auth: Mapping[str, str]) -> Scheme:
    """Return the scheme of a new connection; a missing secret is generated. Raises `Invalid`."""
    unknown = set(auth) - PROVIDERS[provider].AUTH_OPTIONS
    if unknown:
        raise Invalid(f"auth: {provider} has no option {', '.join(sorted(unknown))}")
    if not all(auth.values()):
        raise Invalid("auth: an option must not be empty")
    if "token" in auth or "signing_token" in auth:
        if secret is not None:
            raise Invalid("auth: give either `secret`, or `auth` with token and signing_token")
        if "signing_token" in auth and not auth["signing_token"].startswith("whsec_"):
            raise Invalid("auth: a signing_token must begin with whsec_")
        given = tuple(auth[key] for key in ("token", "signing_token") if key in auth)
        for given_secret in given:
            check_secret(provider, given_secret)
        return Scheme(secrets=given, auth={})
    if "header" in auth or "value" in auth:
        if secret is not None or "user" in auth or not {"header", "value"} <= set(auth):
            raise Invalid("auth: give a custom header as {header, value}, without `secret` and user")
        check_secret(provider, auth["value"])
        return Scheme(secrets=(auth["value"],), auth={"header": auth["header"].lower()})
    if secret is not None:
        check_secret(provider, secret)
    return Scheme(secrets=(secret or new_secret(provider),), auth=auth)


def next_secret(
    conn: sqlalchemy.Connection,
    keyring: Keyring,
    connection: Connection,
    given: str | None,
    *,
    now: datetime,
) -> str:
    """Store the next secret of a connection or a source, by default a new one, and return it.

    Raises `Invalid`. The newest secret, given again, is not stored again.
    """
    try:
        live = connections.live_secrets(conn, keyring, connection.id)
    except SettingError:
        live = []  # they were sealed under another secret key: the rotation repairs that
    newest = live[0].value if live else None
    secret = given or new_secret(connection.provider, newest=newest)
    if secret.encode() != newest:
        check_secret(connection.provider, secret)
        connections.add_secret(conn, keyring, connection.id, secret.encode(), now=now)
    return secret


def check_secret(provider: str, secret: str) -> None:
    """Refuse a weak or malformed secret. Raises `Invalid`, without the secret."""
    if PROVIDERS[provider].HAS_SIGNING_SECRETS and signing_key(secret.encode()) is None:
        raise Invalid("a secret that begins with whsec_ must continue in base64, as the provider shows it")
    if is_weak(secret.encode()):
        raise Invalid(
            f"a secret must have at least {MIN_SECRET_BYTES} bytes, because anybody who guesses it can have"
            " commits executed; omit it to have one generated"
        )
