"""What is recorded about connections beside their settings.

The number of queries does not depend on the number of connections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy

from gateway.store import connections, identities, platforms, reconciliations, refusals, registrations
from gateway.store.connections import Connection, SecretDates
from gateway.store.identities import Identity
from gateway.store.platforms import Platform
from gateway.store.reconciliations import ReconciliationState, Silence
from gateway.store.refusals import Refusal
from gateway.store.registrations import Registration

_RECENTLY = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFacts:
    """What is recorded about a connection.

    The webhook of a connection that belongs to a source is that of the source: `registration`, `refused` (its
    latest refusal of the last day) and `webhook_secrets` are then the source's.
    """

    secrets: list[SecretDates]
    webhook_secrets: list[SecretDates]
    reconciliation: ReconciliationState
    platform: Platform | None = None
    identity: Identity | None = None
    registration: Registration | None = None
    silence: Silence | None = None
    refused: Refusal | None = None

    @property
    def arrived_at(self) -> datetime | None:
        """When the last webhook arrived that one of the live secrets has verified."""
        used = [secret.last_used_at for secret in self.webhook_secrets if secret.last_used_at]
        return max(used, default=None)


def facts(
    conn: sqlalchemy.Connection, found: Sequence[Connection], *, now: datetime
) -> dict[str, ConnectionFacts]:
    """Return the facts of connections, by their ids."""
    ids = [connection.id for connection in found]
    hooks = {connection.id: connection.source or connection.id for connection in found}
    receivers = sorted({*ids, *hooks.values()})
    secrets = connections.secret_dates(conn, receivers)
    states = reconciliations.states(conn, ids)
    named = platforms.of(conn, ids)
    used = identities.of(conn, {one.identity for one in found if one.identity is not None})
    registered = registrations.of(conn, receivers)
    silent = reconciliations.silences(conn, ids)
    refused = refusals.newest(conn, receivers, since=now - _RECENTLY)
    return {
        connection.id: ConnectionFacts(
            secrets=secrets[connection.id],
            webhook_secrets=secrets[hooks[connection.id]],
            reconciliation=states[connection.id],
            platform=named.get(connection.id),
            identity=used.get(connection.identity or ""),
            registration=registered.get(hooks[connection.id]),
            silence=silent.get(connection.id),
            refused=refused.get(hooks[connection.id]),
        )
        for connection in found
    }
