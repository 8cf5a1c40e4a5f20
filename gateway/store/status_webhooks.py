"""The webhooks that receive verdicts in place of the provider. Their secrets are sealed."""

from dataclasses import dataclass, field

import sqlalchemy
from sqlalchemy import select, update

from gateway.crypto.keyring import Keyring
from gateway.store import envelopes
from gateway.store.tables import connections


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReceiver:
    """A URL that receives verdicts, and the secret that signs them."""

    url: str = field(repr=False)
    secret: str = field(repr=False)


def name(
    conn: sqlalchemy.Connection, keyring: Keyring, connection: str, receiver: StatusReceiver | None
) -> None:
    """Set or clear the receiver of a connection."""
    url = None if receiver is None else receiver.url
    sealed = None
    if receiver is not None:
        sealed = keyring.seal(receiver.secret.encode(), context=_context(connection))
    values = {"status_webhook": url, "status_webhook_secret": sealed}
    conn.execute(update(connections).where(connections.c.id == connection).values(**values))


def of(conn: sqlalchemy.Connection, keyring: Keyring, connection: str) -> StatusReceiver | None:
    """Return the receiver of a connection, if it has one. Raise `SettingError` for another secret key."""
    columns = connections.c.status_webhook, connections.c.status_webhook_secret
    url, sealed = conn.execute(select(*columns).where(connections.c.id == connection)).one()
    if url is None:
        return None
    secret = keyring.open(sealed, context=_context(connection)).decode()
    return StatusReceiver(url=url, secret=secret)


def rewrap(conn: sqlalchemy.Connection, keyring: Keyring) -> int:
    """Seal the data keys of all secrets under the current wrapping key; return the number of secrets."""
    return envelopes.rewrap(
        conn, keyring, connections.c.status_webhook_secret, key=connections.c.id, context=_context
    )


def _context(connection: str) -> str:
    return f"the status webhook of {connection}"
