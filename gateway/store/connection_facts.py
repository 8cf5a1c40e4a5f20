"""What is recorded about connections beside their settings.

The number of queries does not depend on the number of connections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy

from gateway.store import (
    connections,
    deliveries,
    identities,
    platforms,
    reconciliations,
    refusals,
    registrations,
    sources,
    status_tasks,
    unaccepted,
)
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

    `arrived_at` is when its last webhook arrived, `refused` the latest refusal of the last day. The webhook
    of a connection that belongs to a source is that of the source: `registration`, `refused` and
    `webhook_secrets` are then the source's. `source` is its name. `status_problem` is why the last attempt to
    send a verdict failed, if it did, `unaccepted_since` when the first request was published that no runner
    accepts.
    """

    secrets: list[SecretDates]
    webhook_secrets: list[SecretDates]
    reconciliation: ReconciliationState
    source: str | None = None
    platform: Platform | None = None
    identity: Identity | None = None
    registration: Registration | None = None
    silence: Silence | None = None
    refused: Refusal | None = None
    arrived_at: datetime | None = None
    status_problem: str | None = None
    unaccepted_since: datetime | None = None


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
    stored = deliveries.arrivals(conn, receivers)
    names = sources.names(conn, {one.source for one in found if one.source is not None})
    unsent = status_tasks.problems(conn, ids)
    refused = refusals.newest(conn, receivers, since=now - _RECENTLY)
    waiting = unaccepted.oldest(conn, ids, before=now - unaccepted.NOTICED_AFTER)
    return {
        connection.id: ConnectionFacts(
            secrets=secrets[connection.id],
            webhook_secrets=secrets[hooks[connection.id]],
            reconciliation=states[connection.id],
            source=names.get(connection.source or ""),
            platform=named.get(connection.id),
            identity=used.get(connection.identity or ""),
            registration=registered.get(hooks[connection.id]),
            silence=silent.get(connection.id),
            refused=refused.get(hooks[connection.id]),
            status_problem=unsent.get(connection.id),
            unaccepted_since=waiting.get(connection.id),
            arrived_at=last(
                *(stored.get(receiver) for receiver in (connection.id, hooks[connection.id])),
                # Old deliveries are deleted.
                *(secret.last_used_at for secret in secrets[hooks[connection.id]]),
            ),
        )
        for connection in found
    }


def last(*moments: datetime | None) -> datetime | None:
    """Return the last of some moments, of those that are known."""
    return max((moment for moment in moments if moment is not None), default=None)
