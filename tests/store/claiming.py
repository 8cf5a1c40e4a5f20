"""Push to connections, claim them and finish their work."""

import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from gateway.store import accept, work_queue
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.work_queue import Settlement
from testing.records import NOW, A, B, arrival, move

SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=60)


def claim(database: Database, claims_of: Claims, now: datetime = NOW, owner: str = "w") -> str | None:
    """Claim as a worker of a process does."""
    with database.writing() as conn:
        return first(claims_of.claim(conn, owner=owner, now=now, until=now + LEASE))


def first(claimed: Sequence[str]) -> str | None:
    """Return what was claimed, at most one connection."""
    return next(iter(claimed), None)


def next_one(database: Database, claims_of: Claims, now: datetime) -> str | None:
    """Return the connection that a claim would take now."""
    with database.engine.begin() as conn:
        found = first(claims_of.claim(conn, owner="w", now=now, until=now + LEASE))
        conn.rollback()
    return found


def push(database: Database, *connections: str, at: datetime = NOW, times: int = 1) -> None:
    """Record pushes to each of these connections."""
    with database.writing() as conn:
        for one in connections:
            moves = [move(A, B, ref=f"refs/heads/{uuid.uuid4().hex}") for _ in range(times)]
            accept.record(conn, [arrival(*moves, connection=one, received_at=at)])


def release(database: Database, connection_id: str, now: datetime, owner: str = "w") -> None:
    """Return a connection back with more to do, as at the end of a turn."""
    with database.writing() as conn:
        work_queue.release(conn, connection_id, owner=owner, now=now)


def finish(database: Database, connection_id: str, now: datetime = NOW, owner: str = "w") -> None:
    """Settle all pending updates, and release the connection."""
    with database.writing() as conn:
        updates = work_queue.pending(conn, connection_id, limit=10)
        ends = [Settlement(update=update, state="planned", reason="") for update in updates]
        work_queue.settle(conn, connection_id, ends, owner=owner, now=now)
        work_queue.release(conn, connection_id, owner=owner, now=now)


def turns(database: Database, count: int) -> list[str | None]:
    """Give one worker so many turns, without finishing a connection; return their connections."""
    had = []
    for number in range(count):
        now = NOW + (1 + number) * SECOND
        one = claim(database, Claims(process="p1"), now)
        had.append(one)
        if one is not None:
            release(database, one, now)
    return had
