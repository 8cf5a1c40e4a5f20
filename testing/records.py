"""Records for tests, with default values. Each test passes only the values that matter to it."""

import uuid
from datetime import UTC, datetime
from typing import Any

import sqlalchemy
from sqlalchemy import select

from gateway.store import connections
from gateway.store.accept import NewDelivery
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.executions import NewRequest
from gateway.store.tables import metadata
from providers.model import RefUpdate
from providers.normalize import ref_update

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
A, B, C = "a" * 40, "b" * 40, "c" * 40


def made(connection_id: str = "c1", **changes: Any) -> Connection:
    """Return a connection that is not stored yet."""
    values: dict[str, Any] = {
        "id": connection_id,
        "name": "acme/digits",
        "provider": "github",
        "url": "https://github.example/acme/digits.git",
        "project": "digits",
        "auth": {},
        "triggers": [],
        "yaml_path": "valohai.yaml",
        "repository_id": None,
        "created_at": NOW,
        "updated_at": NOW,
        **changes,
    }
    return Connection(**values)


def connection(database: Database, connection_id: str = "c1", **changes: Any) -> Connection:
    """Store a connection."""
    kept = made(connection_id, **changes)
    with database.writing() as conn:
        connections.add(conn, kept)
    return kept


def move(before: str | None, after: str | None, ref: str = "refs/heads/main") -> RefUpdate:
    """Return a ref update."""
    update = ref_update(ref=ref, before=before, after=after)
    assert update is not None
    return update


def arrival(*moves: RefUpdate, **changes: Any) -> NewDelivery:
    """Return a new delivery with ids of its own."""
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "connection": "c1",
        "source": "webhook",
        "event": "push",
        "provider_delivery_id": str(uuid.uuid4()),
        "received_at": NOW,
        "verdict": "accepted",
        "reason": None,
        "pusher": "ada",
        "repository": {"full_name": "acme/digits"},
        "headers": {"x-github-event": "push"},
        "secret": None,
        "body": b'{"ref": "refs/heads/main"}',
        "updates": moves,
        **changes,
    }
    return NewDelivery(**values)


def request(request_id: str, **changes: Any) -> NewRequest:
    """Return a new execution request."""
    values: dict[str, Any] = {
        "id": request_id,
        "connection": "c1",
        "delivery": "d1",
        "project": "digits",
        "trigger": "train@main",
        "target": "train",
        "subject": "acme/digits",
        "body": b"{}",
        **changes,
    }
    return NewRequest(**values)


def rows_of_others(conn: sqlalchemy.Connection, connection_id: str) -> dict[str, list[Any]]:
    """Return, by table, all rows of other connections."""
    kept = {}
    for table in metadata.sorted_tables:
        owner = table.c.id if table.name == "connections" else table.c.get("connection")
        if owner is not None:
            rows = conn.execute(select(table).where(owner != connection_id))
            kept[table.name] = sorted(map(repr, rows))
    return kept
