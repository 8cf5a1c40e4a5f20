"""Accept deliveries, and read what was recorded."""

from datetime import timedelta

from gateway.store import accept, deliveries
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.database import Database
from gateway.store.deliveries import RecordedDelivery, Verdict
from providers.model import RefUpdate


def record(database: Database, *arrivals: NewDelivery) -> list[Verdict]:
    """Record a batch; return the verdicts."""
    with database.writing() as conn:
        return [receipt.verdict for receipt in accept.record(conn, arrivals)]


D, E = "d" * 40, "e" * 40
HOUR = timedelta(hours=1)


def receipts(database: Database, *arrivals: NewDelivery) -> list[Receipt]:
    """Record a batch; return the receipts."""
    with database.writing() as conn:
        return accept.record(conn, arrivals)


def got(database: Database, delivery: str) -> RecordedDelivery:
    """Return a recorded delivery."""
    with database.reading() as conn:
        return deliveries.get(conn, delivery)


def head(after: str, number: str = "5") -> RefUpdate:
    """Return a move of the head of a pull request."""
    return RefUpdate(
        ref=f"refs/pull/{number}/head",
        kind="pull_request",
        name=number,
        before=None,
        after=after,
        action="create",
    )
