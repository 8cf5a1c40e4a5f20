"""What is asked of many deliveries at once: bulk replays, statistics, and the filters of the list."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.requests import Request

from gateway.api import replays
from gateway.api.delivery_filters import delivery_filters, found
from gateway.api.replays import Replays
from gateway.api.statistics import Statistics
from gateway.errors import Invalid, NotFound
from gateway.store import accept, connections, executions, statistics
from gateway.store.database import Database
from gateway.store.ids import delivery_id
from gateway.store.notify import Notifier
from gateway.store.tables import ref_updates
from testing.records import arrival, connection, move, request
from tests.store.accepting import got
from tests.store.test_outcomes import stored

NOW = datetime.now(UTC)


@pytest.fixture
def database(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    """Return a store with two connections and a delivery for each of the last hours."""
    path = tmp_path / "many.db"
    path.write_bytes(migrated.read_bytes())
    with closing(Database(f"sqlite:///{path}")) as database:
        for name in ("c1", "c2"):
            connection(database, name, name=f"acme/{name}")
        sent = []
        for number in range(8):
            at = NOW - timedelta(hours=number, minutes=5)
            moved = move(None, f"{number + 1:040x}", f"refs/heads/b{number}")
            mine = {"id": delivery_id(at), "received_at": at, "connection": f"c{number % 2 + 1}"}
            sent.append(arrival(moved, **mine))
        with database.writing() as conn:
            accept.record(conn, sent)
            ended = {"state": "failed", "fetched_at": NOW, "settled_at": NOW}
            conn.execute(update(ref_updates).values(ended))
            accept.record(conn, [arrival(id=delivery_id(NOW), verdict="ignored", received_at=NOW)])
        yield database


def replay(database: Database, **body: Any) -> Any:
    """Replay by the API; return its answer."""

    async def receive() -> Any:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    scope = {"type": "http", "method": "POST", "headers": [], "query_string": b"", "path": "/"}
    api = Replays(database=database, pushes=Notifier())
    return asyncio.run(api.replay_deliveries(Request(scope, receive))).model_dump()


def test_the_selected_deliveries_are_replayed_in_parts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer leads to the next; what cannot be replayed has its reason."""
    monkeypatch.setattr(replays, "MAX_AT_ONCE", 3)
    monkeypatch.setattr(replays, "_BATCH", 2)
    with database.writing() as conn:
        connections.remove(conn, "c2", now=NOW)
    selection = {"since": (NOW - timedelta(hours=6)).isoformat()}
    dry = replay(database, **selection, dry_run=True)
    assert all(state == "waiting" for state, _ in stored(database).values() if state != "ignored")
    first = replay(database, **selection)
    assert {**dry, "dry_run": False} == first
    second = replay(database, **selection, cursor=first["next"])
    assert (first["count"], second["count"], second["next"]) == (2, 1, None)
    replayed = first["replayed"] + second["replayed"]
    assert [got(database, one).updates[0].state for one in replayed] == ["pending"] * 3
    refused = first["refused"] + second["refused"]
    assert {one["reason"] for one in refused} == {
        "the connection of this delivery was deleted: nothing can be fetched for it"
    }
    assert len(refused) == 3


@pytest.mark.parametrize(
    "body", [{}, {"dry_run": True}, {"outcome": "fine"}, {"commit": "x"}, {"branch": " "}]
)
def test_a_replay_needs_a_filter_that_is_right(database: Database, body: dict[str, Any]) -> None:
    """So that nothing is replayed by mistake."""
    with pytest.raises(Invalid):
        replay(database, **body)


def test_deliveries_are_counted_by_outcome_and_time(database: Database) -> None:
    """In parts of one hour for a day; nothing is in two parts, or in none."""
    shown = asyncio.run(Statistics(database=database).of_the_last(3))
    assert [bucket.counts for bucket in shown.buckets] == [
        {"waiting": 1},
        {"waiting": 1},
        {"waiting": 1, "ignored": 1},
    ]
    week = asyncio.run(Statistics(database=database).of_the_last(168))
    assert sum(sum(bucket.counts.values()) for bucket in week.buckets) == 9
    assert week.buckets[0].until - week.buckets[0].since == timedelta(hours=6)
    assert week.refused == 0


def test_the_stages_of_a_push_are_measured(database: Database) -> None:
    """From the webhook to the mirror, the plan, and the confirm of the first request."""
    with database.writing() as conn:
        conn.execute(update(ref_updates).values(fetched_at=None))
        at = NOW - timedelta(minutes=5)
        times = {"fetched_at": at + timedelta(seconds=2), "settled_at": at + timedelta(seconds=5)}
        conn.execute(update(ref_updates).where(ref_updates.c.name == "b0").values(times))
        its_update = select(ref_updates.c.seq, ref_updates.c.delivery).where(ref_updates.c.name == "b0")
        one = conn.execute(its_update).one()
        executions.add(conn, [request("r1", delivery=one.delivery)], ref_update=one.seq, now=NOW)
        done = at + timedelta(seconds=6)
        executions.record(conn, published=["r1"], refused={}, undeliverable={}, now=done)
        found = statistics.latencies(conn, since=NOW - timedelta(hours=1))
    assert {one.stage: (one.count, one.median, one.p95) for one in found} == {
        "fetch": (1, 2, 2),
        "plan": (1, 3, 3),
        "publish": (1, 1, 1),
        "total": (1, 6, 6),
    }


def listed(database: Database, **query: str) -> int:
    """Return how many records a list has."""
    with database.reading() as conn:
        return len(found(conn, delivery_filters(conn, query), before=None, limit=50)[0])


def test_the_filters_of_a_query_apply_together(database: Database) -> None:
    """Of refused requests, no ref and no person is known."""
    assert listed(database) == 9
    assert listed(database, connection="acme/c1", branch="b2", author="ADA", q="b") == 1
    assert listed(database, since=(NOW - timedelta(hours=2)).isoformat(), q="acme/C2") == 1
    assert listed(database, commit="0" * 39 + "1") == 1
    assert listed(database, outcome="refused") == listed(database, outcome="refused", q="b") == 0
    with pytest.raises(NotFound):
        listed(database, connection="nobody")
