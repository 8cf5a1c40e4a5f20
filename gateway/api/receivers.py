"""What a connection tells others: the webhook that receives verdicts, and the platform that fetches."""

from urllib.parse import SplitResult, urlsplit

import sqlalchemy

from gateway.api.schemas import NewPlatform, NewStatusWebhook
from gateway.crypto.keyring import Keyring
from gateway.errors import Invalid
from gateway.provider_apis.standard_webhook import check_secret
from gateway.store import platforms
from gateway.store.platforms import Platform
from gateway.store.status_webhooks import StatusReceiver


def status_receiver(wanted: NewStatusWebhook | None, *, allow_http: bool) -> StatusReceiver | None:
    """Return the receiver of verdicts that a request names. Raises `Invalid`."""
    if wanted is None:
        return None
    parts, secret = _parts("status_webhook.url", wanted.url), wanted.secret.get_secret_value()
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_http):
        raise Invalid("status_webhook.url must begin with https://")
    if not parts.hostname or parts.username is not None:
        raise Invalid("status_webhook.url must have a host, and no user")
    check_secret(secret)
    return StatusReceiver(url=wanted.url, secret=secret)


def name_platform(
    conn: sqlalchemy.Connection,
    keyring: Keyring,
    connection_id: str,
    wanted: NewPlatform | None,
    *,
    allow_http: bool,
) -> None:
    """Store the platform that fetches for a connection. Raises `Invalid`."""
    if wanted is None:
        platforms.name(conn, keyring, connection_id, None, None)
        return
    _check_platform(wanted.url, allow_http=allow_http)
    platform = Platform(url=wanted.url, project=wanted.project)
    token = wanted.token.get_secret_value() if wanted.token else None
    kept = platforms.of(conn, [connection_id]).get(connection_id)
    if token is None and (kept is None or kept.url != platform.url):
        raise Invalid(
            "platform: a token is needed, for its header Authorization: Token …; the stored token is sent to"
            " its own address only"
        )
    platforms.name(conn, keyring, connection_id, platform, token)


def _check_platform(url: str, *, allow_http: bool) -> None:
    """Raise `Invalid` for a platform's URL that is malformed or would expose the platform's token."""
    parts = _parts("platform.url", url)
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_http):
        raise Invalid("platform.url must begin with https://")
    if not parts.hostname or parts.username or parts.query or parts.fragment:
        raise Invalid("platform.url must be scheme and host, without user, query or fragment")


def _parts(field: str, url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise Invalid(f"{field}: it is not a valid URL") from None
