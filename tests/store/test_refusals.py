"""The record of refused requests: what is counted together, how long it is kept, and how much of it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gateway.errors import NotFound
from gateway.store import connections, refusals
from gateway.store.database import Database
from gateway.store.refusals import MAX_ROWS, RecordedRefusal, Refusal
from gateway.worker.retention import Retention
from testing.records import NOW, connection

UNKNOWN = "0" * 24
MINUTE = timedelta(minutes=1)
FIRST = Refusal(
    connection="c1",
    client="192.0.2.1",
    status=401,
    cause="not verified",
    reason="x-hub-signature-256 does not fit",
    event="ping",
    provider_delivery_id="one",
    first_at=NOW,
    last_at=NOW,
)


def record(database: Database, *found: Refusal) -> None:
    """Record refusals in one transaction."""
    with database.writing() as conn:
        refusals.record(conn, found)


def listed(
    database: Database, connection: str | None = None, *, before: str | None = None, limit: int = 200
) -> list[RecordedRefusal]:
    """Return refusals, the newest first."""
    with database.reading() as conn:
        return refusals.page(conn, connection=connection, before=before, limit=limit)


def later(minutes: int, **changes: Any) -> Refusal:
    """Return a refusal so many minutes later."""
    moment = NOW + minutes * MINUTE
    return replace(FIRST, first_at=moment, last_at=moment, **changes)


def test_requests_of_one_client_for_one_reason_are_counted_on_each_day(database: Database) -> None:
    """The row has the first and last time, and the latest event and id, in whatever order it is written."""
    connection(database)
    record(database, later(5, event="push", provider_delivery_id="three"))
    [written] = listed(database)
    record(database, replace(FIRST, last_at=NOW + MINUTE, count=2, provider_delivery_id="two"))
    record(database, later(0, client="192.0.2.2"), later(24 * 60))
    [next_day, first, other] = sorted(listed(database), key=lambda each: (-each.first_at.day, each.client))
    assert (first.count, first.first_at, first.last_at) == (3, NOW, NOW + 5 * MINUTE)
    assert (first.event, first.provider_delivery_id, first.id) == ("push", "three", written.id)
    assert (first.name, first.provider, first.is_orphan) == ("acme/digits", "github", False)
    assert (other.client, other.count, next_day.count) == ("192.0.2.2", 1, 1)
    with database.reading() as conn:
        assert refusals.get(conn, first.id) == first
        assert refusals.claiming(conn, "three") == [first]
        with pytest.raises(NotFound, match="no delivery has the id"):
            refusals.get(conn, "three")


def test_each_connection_has_its_newest_refusals(database: Database) -> None:
    """What is refused at one does not drive out what is refused at others; unknown ones share a limit."""
    connection(database)
    connection(database, "c2")
    record(database, replace(FIRST, connection="c2"), replace(FIRST, connection=None))
    flood = [later(number + 1, client=f"192.0.2.{number}") for number in range(MAX_ROWS + 2)]
    record(database, *flood[:40])
    record(database, *flood[40:])
    assert [each.client for each in listed(database, "c1")] == [each.client for each in flood[:1:-1]]
    newest, *_, oldest = listed(database, "c1")
    assert listed(database, "c1", before=newest.id, limit=1)[0].client == flood[-2].client
    assert listed(database, "c1", before=oldest.id) == []
    assert len(listed(database, "c2")) == 1
    record(database, *(later(number + 1, connection=f"{number:024x}") for number in range(MAX_ROWS)))
    unknown = [each for each in listed(database) if each.name is None]
    assert (len(unknown), {each.is_orphan for each in unknown}) == (MAX_ROWS, {True})
    assert None not in {each.connection for each in unknown}


def test_refusals_are_deleted_with_their_connection(database: Database) -> None:
    """What a provider still sends there is recorded with the requests for unknown connections."""
    connection(database, UNKNOWN)
    record(database, replace(FIRST, connection=UNKNOWN))
    with database.writing() as conn:
        connections.remove(conn, UNKNOWN, now=NOW)
    assert listed(database) == []
    record(database, replace(FIRST, connection=UNKNOWN))
    record(database, later(1, connection=UNKNOWN))
    [kept] = listed(database, UNKNOWN)
    assert (kept.connection, kept.name, kept.is_orphan, kept.count) == (UNKNOWN, "acme/digits", True, 2)


def test_old_refusals_are_deleted(database: Database) -> None:
    """By the time of the latest request, like deliveries."""
    connection(database)
    record(database, FIRST, later(1, client="192.0.2.2"))
    keep = timedelta(days=1)
    asyncio.run(Retention(database=database, keep=keep).run(NOW + keep + MINUTE))
    assert [each.client for each in listed(database)] == ["192.0.2.2"]


def test_processes_record_at_once(database: Database) -> None:
    """None waits for another forever, and each request is counted."""
    connection(database)
    found = [later(number % 3, client=f"192.0.2.{number}") for number in range(20)]
    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(lambda turn: record(database, *found[:: 1 if turn % 2 else -1]), range(12)):
            pass
    assert {each.count for each in listed(database)} == {12}
