"""Push moves, and plan and end their requests."""

from dataclasses import replace
from datetime import timedelta

from gateway.store import accept, executions, work_queue
from gateway.store.database import Database
from gateway.store.executions import NewRequest, StoredRequest
from testing.records import NOW, arrival, move
from tests.store.test_refused import REQUEST

LATER = NOW + timedelta(minutes=1)
MAIN, TOPIC = "refs/heads/main", "refs/heads/topic"
LATEST = replace(REQUEST, is_latest_only=True)


def push(database: Database, delivery: str, before: str, after: str, **more: str) -> int:
    """Record a push; return the number of its ref update."""
    ref, connection_id = more.get("ref", MAIN), more.get("connection", "c1")
    with database.writing() as conn:
        sent = arrival(move(before, after, ref), id=delivery, connection=connection_id)
        accept.record(conn, [sent])
        updates = work_queue.pending(conn, connection_id, limit=99)
    return max(one.seq for one in updates)


def plan(database: Database, ref_update: int, *requests: NewRequest) -> None:
    """Put a ref update's requests into the outbox."""
    with database.writing() as conn:
        executions.add(conn, requests, ref_update=ref_update, now=NOW)


def stored(database: Database) -> dict[str, StoredRequest]:
    """Return all requests by their ids."""
    with database.reading() as conn:
        found, _ = executions.page(conn, limit=99, **ALL)
    return {one.id: one for one in found}


ALL: dict[str, None] = dict.fromkeys(("connection", "delivery", "state", "before"))


def request(name: str) -> NewRequest:
    """Return one of the requests of `two_moves`."""
    delivery, _, trigger = name.partition("-")
    return replace(LATEST, id=name, delivery=delivery, trigger=trigger)


def end(database: Database, name: str, state: str) -> None:
    """End a request without superseding it."""
    with database.writing() as conn:
        if state == "dropped":
            executions.drop(conn, name)
        else:
            published = [name] if state == "published" else []
            never = {name: "large"} if state == "undeliverable" else {}
            executions.record(conn, published=published, refused={}, undeliverable=never, now=NOW)
