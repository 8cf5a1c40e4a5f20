"""Reconcile a connection as if its remote had shown some refs."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from gateway.store import accept, looks, reconciliations
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.database import Database
from gateway.store.ids import delivery_id
from gateway.store.reconciliations import Reconciliation, ReconciliationState
from providers.model import RefUpdate
from testing.records import NOW, arrival

MAIN = "refs/heads/main"
D = "d" * 40
EVERY, GRACE, LEASE = timedelta(minutes=5), timedelta(seconds=10), timedelta(minutes=15)


def look(
    database: Database,
    *moves: RefUpdate,
    now: datetime = NOW,
    agreeing: Mapping[str, str | None] | None = None,
    is_sure: bool = False,
) -> Receipt | None:
    """Do the reconciliation that is due, as if the remote had shown these moves."""
    with database.writing() as conn:
        reconciliation = reconciliations.claim(conn, now=now, until=now + LEASE)
        assert reconciliation is not None
        return looks.record(
            conn,
            reconciliation,
            found(*moves, now=now),
            next_at=now + EVERY,
            look_again_at=None if is_sure else now + GRACE,
            agreeing=agreeing or {},
        )


def found(*moves: RefUpdate, now: datetime = NOW) -> NewDelivery:
    """Return the result of a look."""
    return arrival(
        *moves, id=delivery_id(now), source="reconciliation", provider_delivery_id=None, received_at=now
    )


def deliver(database: Database, *moves: RefUpdate, now: datetime = NOW, **changes: Any) -> Receipt:
    """Record a webhook that reports moves."""
    sent = arrival(*moves, id=delivery_id(now), received_at=now, **changes)
    with database.writing() as conn:
        [receipt] = accept.record(conn, [sent])
    return receipt


def state(database: Database) -> ReconciliationState:
    """Return the state of the connection's reconciliations."""
    with database.reading() as conn:
        return reconciliations.states(conn, ["c1"])["c1"]


def position(database: Database) -> str | None:
    """Return the known position of main."""
    with database.reading() as conn:
        return reconciliations.known_refs(conn, "c1")[MAIN]


def after(minutes: float) -> datetime:
    """Return the moment so many minutes after the first look."""
    return NOW + timedelta(minutes=minutes)


def claimed(database: Database, now: datetime, until: datetime | None = None) -> Reconciliation | None:
    """Claim the reconciliation that is due."""
    with database.writing() as conn:
        return reconciliations.claim(conn, now=now, until=until or now + LEASE)


def failed(database: Database, now: datetime, reason: str = "it hangs") -> Reconciliation:
    """Fail the reconciliation that is due; return it."""
    reconciliation = claimed(database, now)
    assert reconciliation is not None
    with database.writing() as conn:
        reconciliations.fail(conn, reconciliation, reason, next_at=now + GRACE)
    return reconciliation
