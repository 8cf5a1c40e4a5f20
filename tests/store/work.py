"""Pushes, claims and settlements of the tests for the work queue."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from gateway.store import accept, work_queue
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.executions import NewRequest
from gateway.store.work_queue import PendingUpdate, Postponement, Settlement
from testing import records
from testing.records import NOW, arrival, move
from tests.store.claiming import first

LATER = NOW + timedelta(seconds=60)


def claim(database: Database, owner: str, now: datetime = NOW) -> str | None:
    """Claim as a worker does."""
    with database.writing() as conn:
        claims = Claims(process="p1")
        return first(claims.claim(conn, owner=owner, now=now, until=now + timedelta(seconds=60)))


def push(database: Database, *moves: tuple[str, str], connection_id: str = "c1") -> None:
    """Record pushes."""
    with database.writing() as conn:
        accept.record(conn, [arrival(move(*one), connection=connection_id) for one in moves])


def pending(database: Database, connection_id: str = "c1") -> list[PendingUpdate]:
    """Return the pending updates."""
    with database.reading() as conn:
        return work_queue.pending(conn, connection_id, limit=10)


def settle(
    database: Database,
    *ends: Settlement,
    now: datetime = NOW,
    postponed: Sequence[Postponement] = (),
) -> None:
    """Record settlements and delays as the worker `w1`."""
    with database.writing() as conn:
        work_queue.settle(conn, "c1", ends, owner="w1", now=now, postponed=postponed)


def request(number: int = 1) -> NewRequest:
    """Return an execution request."""
    return records.request(f"request-{number}", delivery=DELIVERY)


DELIVERY = "the-delivery"
