"""Deletion of old records, and the records that stay."""

import asyncio
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from gateway.errors import NotFound
from gateway.messages.execution_status import ExecutionStatus
from gateway.store import (
    accept,
    deliveries,
    executions,
    looks,
    reconciliations,
    retention,
    runs,
    work_queue,
)
from gateway.store.accept import NewDelivery
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.deliveries import UpdateState
from gateway.store.execution_tables import executions as execution_table
from gateway.store.executions import NewRequest
from gateway.store.ids import delivery_id
from gateway.store.tables import deliveries as delivery_table
from gateway.store.tables import ref_updates
from gateway.store.work_queue import Settlement
from gateway.worker.retention import Retention
from providers.model import RefUpdate
from testing.postgres import Postgres
from testing.records import NOW, A, B, C, arrival, connection, move, request
from testing.service import wait_for

DAY = timedelta(days=1)
KEEP = 180 * DAY
LATER = NOW + 200 * DAY


def deliver(database: Database, *moves: RefUpdate, days: int = 0, **changes: object) -> NewDelivery:
    """Record a delivery that arrived so many days after NOW."""
    moment = NOW + days * DAY
    sent = arrival(*moves, id=delivery_id(moment), received_at=moment, **changes)
    with database.writing() as conn:
        accept.record(conn, [sent])
    return sent


def settle(database: Database, *, days: int = 0, state: UpdateState = "planned", request: str = "") -> None:
    """Settle pending updates, so many days after NOW; with a request if one is named."""
    moment = NOW + days * DAY
    with database.writing() as conn:
        assert Claims(process="p").claim(conn, owner="w", now=moment, until=moment + DAY) == ["c1"]
        ends = [
            Settlement(
                update=one,
                state=state,
                reason="done",
                requests=asked(request, one.delivery) if request else (),
            )
            for one in work_queue.pending(conn, "c1", limit=100)
        ]
        work_queue.settle(conn, "c1", ends, owner="w", now=moment)
        work_queue.release(conn, "c1", owner="w", now=moment)


def asked(name: str, delivery: str) -> tuple[NewRequest]:
    """Return one execution request."""
    return (request(name, delivery=delivery),)


def publish(database: Database, *names: str, days: int = 0) -> None:
    """Mark requests as published, so many days after NOW."""
    with database.writing() as conn:
        executions.record(conn, published=names, refused={}, undeliverable={}, now=NOW + days * DAY)


def report(database: Database, name: str, *, days: int) -> None:
    """Report that an execution runs, so many days after NOW."""
    running = ExecutionStatus(id=name, state="running", at=NOW, sequence=1)
    with database.writing() as conn:
        [outcome] = runs.record(conn, [running], now=NOW + days * DAY)
    assert outcome.state == "running"


def clean_up(database: Database) -> None:
    """Delete old records."""
    asyncio.run(Retention(database=database, keep=KEEP).run(LATER))


def is_kept(database: Database, delivery: NewDelivery) -> bool:
    """Return whether a delivery is still there."""
    try:
        with database.reading() as conn:
            deliveries.get(conn, delivery.id)
    except NotFound:
        return False
    return True


def count(database: Database) -> tuple[int, ...]:
    """Return how many deliveries, ref updates and executions there are."""
    with database.reading() as conn:
        return tuple(
            conn.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (delivery_table, ref_updates, execution_table)
        )


def test_what_was_settled_long_ago_is_deleted_with_all_that_came_of_it(database: Database) -> None:
    """Its body, its ref updates and its executions; later deliveries stay complete."""
    connection(database)
    deliver(database, verdict="ignored", reason="ping")
    old = deliver(database, move(A, B))
    settle(database)
    with database.writing() as conn:
        work_queue.replay(conn, old.id, now=NOW)
    settle(database, request="old")
    young = deliver(database, move(B, C), days=30)
    settle(database, days=30, request="young")
    publish(database, "old", "young", days=19)
    clean_up(database)
    assert (is_kept(database, old), is_kept(database, young)) == (False, True)
    assert count(database) == (1, 1, 1)
    with database.reading() as conn:
        assert deliveries.body(conn, young.id) == young.body
        assert executions.get(conn, "young").delivery == young.id


def test_what_is_not_over_stays(database: Database) -> None:
    """However old: a pending update, or an unpublished request."""
    connection(database)
    planned = deliver(database, move(A, B))
    settle(database, request="unpublished")
    pending = deliver(database, move(B, C))
    clean_up(database)
    assert (is_kept(database, planned), is_kept(database, pending)) == (True, True)
    assert count(database) == (2, 2, 1)


@pytest.mark.parametrize("event", ["settled", "planned", "published", "reported"])
def test_what_happened_lately_counts_and_not_when_the_delivery_came(database: Database, event: str) -> None:
    """A delivery that was planned again, or published after a long outage, is kept from that time on."""
    connection(database)
    old = deliver(database, move(A, B))
    settle(database, request="first")
    publish(database, "first", days=190 if event == "published" else 1)
    if event == "reported":
        report(database, "first", days=190)
    elif event != "published":
        with database.writing() as conn:
            work_queue.replay(conn, old.id, now=NOW + 190 * DAY)
        settle(database, days=190, request="second" if event == "planned" else "")
    if event == "planned":
        publish(database, "second", days=191)
        with database.writing() as conn:
            # As if the update had been settled long ago: only its new request is a reason to keep it.
            conn.execute(update(ref_updates).values(settled_at=NOW))
            conn.execute(update(execution_table).values(published_at=NOW))
    clean_up(database)
    assert is_kept(database, old)


def test_what_was_superseded_goes_like_what_was_published(database: Database) -> None:
    """The broker never gets it."""
    connection(database)
    old = deliver(database, move(A, B))
    settle(database, request="old")
    report(database, "old", days=1)
    with database.writing() as conn:
        conn.execute(update(execution_table).values(state="superseded", superseded_by="another"))
    clean_up(database)
    assert not is_kept(database, old)


def test_a_repetition_of_what_was_deleted_is_still_one(database: Database) -> None:
    """The latest state of a ref and the number of its moves are never deleted."""
    connection(database)
    deliver(database, move(A, B), provider_delivery_id="guid")
    settle(database)
    clean_up(database)
    assert count(database) == (0, 0, 0)
    again = [
        arrival(move(A, B), provider_delivery_id="guid"),
        arrival(move(A, B)),
        arrival(move(B, A)),
    ]
    with database.writing() as conn:
        receipts = accept.record(conn, again)
        last = deliveries.get(conn, again[2].id)
        assert reconciliations.known_refs(conn, "c1") == {"refs/heads/main": A}
    assert [receipt.verdict for receipt in receipts] == ["duplicate", "duplicate", "accepted"]
    assert last.updates[0].generation == 2


def test_what_a_reconciliation_refers_to_stays(database: Database) -> None:
    """The delivery that requested one still due, and the one with the last one's findings."""
    connection(database)
    asking = deliver(database, asks_for_reconciliation=True)
    clean_up(database)
    assert is_kept(database, asking)
    found = swept(database, asking)
    clean_up(database)
    assert (is_kept(database, asking), is_kept(database, found)) == (False, True)
    swept(database)
    clean_up(database)
    assert not is_kept(database, found)


def swept(database: Database, asking: NewDelivery | None = None) -> NewDelivery:
    """End a reconciliation that, if a delivery has asked for it, finds a new ref; return what is recorded."""
    moves = (move(None, A, "refs/tags/v1"),) if asking else ()
    sent = arrival(*moves, id=delivery_id(NOW), source="reconciliation", provider_delivery_id=None)
    with database.writing() as conn:
        claimed = reconciliations.claim(conn, now=LATER, until=LATER + DAY)
        assert claimed is not None
        looks.record(conn, replace(claimed, is_first=False), sent, next_at=NOW)
    if asking:
        settle(database)
    return sent


def test_steps_are_small_and_none_is_left_out(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each deletes a few deliveries, fewer if they are large, and the next continues after it."""
    monkeypatch.setattr(retention, "_MAX_DELIVERIES", 3)
    monkeypatch.setattr(retention, "_MAX_UPDATES", 4)
    connection(database)
    many = [move(None, A, f"refs/tags/v{number}") for number in range(10)]
    for day, sent in enumerate(([], [], [], [move(A, B)], many, [], [move(B, C)])):
        deliver(database, *sent, days=day)
    settle(database)
    assert forgotten(database) == [3, 1, 1, 2]
    assert count(database) == (0, 0, 0)


def test_bodies_count(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step deletes at most as many bytes as one batch of deliveries may have."""
    monkeypatch.setattr(retention, "_MAX_BYTES", 100)
    connection(database)
    for number in range(4):
        deliver(database, body=bytes(range(60 + number)))
    assert forgotten(database) == [1, 1, 1, 1]


def forgotten(database: Database) -> list[int]:
    """Delete old records step by step; return how many deliveries each has deleted."""
    found: list[int] = []
    after = ""
    while True:
        with database.writing() as conn:
            step = retention.forget(conn, before=LATER - KEEP, after=after)
        if step is None:
            return found
        found.append(step.forgotten)
        after = step.last


def test_a_step_takes_as_much_as_it_may(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the limit of ref updates, and no more."""
    monkeypatch.setattr(retention, "_MAX_UPDATES", 4)
    connection(database)
    for day, number in enumerate((2, 2, 3, 2)):
        deliver(database, *(move(None, A, f"refs/tags/{day}-{one}") for one in range(number)), days=day)
    settle(database)
    assert forgotten(database) == [2, 1, 1]


def test_a_step_takes_as_many_bytes_as_it_may(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the limit, and no more."""
    connection(database)
    for number in range(4):
        deliver(database, body=bytes(range(100)), days=number)
    with database.reading() as conn:
        [size] = set(conn.execute(select(func.length(delivery_table.c.body))).scalars())
    monkeypatch.setattr(retention, "_MAX_BYTES", 3 * size)
    assert forgotten(database) == [3, 1]
    for number in range(4):
        deliver(database, body=bytes(range(100)), days=number)
    monkeypatch.setattr(retention, "_MAX_BYTES", 3 * size - 1)
    assert forgotten(database) == [2, 2]


def test_small_deliveries_go_in_one_step(database: Database) -> None:
    """Each step costs a pause, and with one delivery per step the store would never shrink."""
    connection(database)
    for number in range(50):
        deliver(database, body=bytes(range(100)), days=number % 10)
    assert forgotten(database) == [50]


def test_what_stays_is_looked_at_once(database: Database) -> None:
    """A step continues after the last delivery that it has seen, deleted or not."""
    connection(database)
    first, _, third = (deliver(database, move(None, A, f"refs/tags/{day}"), days=day) for day in range(3))
    with database.writing() as conn:
        for after in ("", first.id):
            step = retention.forget(conn, before=LATER - KEEP, after=after)
            assert step == retention.Step(last=third.id, forgotten=0)
        assert retention.forget(conn, before=LATER - KEEP, after=third.id) is None


@pytest.mark.parametrize("state", ["planned", "gone", "failed"])
def test_however_an_update_ended_it_is_deleted_when_it_is_old(database: Database, state: UpdateState) -> None:
    """With its reported repetitions."""
    connection(database)
    old = deliver(database, move(A, B))
    repeated = deliver(database, move(A, B))
    settle(database, state=state)
    clean_up(database)
    assert (is_kept(database, old), is_kept(database, repeated)) == (False, False)


@pytest.mark.parametrize("state", ["published", "superseded", "undeliverable", "dropped"])
def test_however_a_request_ended_it_is_deleted_when_it_is_old(database: Database, state: str) -> None:
    """Only a pending one is still needed."""
    connection(database)
    old = deliver(database, move(A, B))
    settle(database, request="old")
    with database.writing() as conn:
        conn.execute(update(execution_table).values(state=state))
    clean_up(database)
    assert not is_kept(database, old)


@pytest.mark.parametrize("event", ["settled_at", "planned_at", "published_at"])
@pytest.mark.parametrize(("earlier", "stays"), [(0, True), (1, False)])
def test_what_happened_is_kept_to_the_moment(
    database: Database, event: str, *, earlier: int, stays: bool
) -> None:
    """Exactly as long as the setting says, counted from the last event of a delivery."""
    connection(database)
    old = deliver(database, move(A, B))
    settle(database, request="old")
    publish(database, "old")
    table = ref_updates if event == "settled_at" else execution_table
    moment = LATER - KEEP - earlier * timedelta(microseconds=1)
    with database.writing() as conn:
        conn.execute(update(table).values({event: moment}))
    clean_up(database)
    assert is_kept(database, old) is stays


def test_a_delivery_is_kept_to_the_millisecond(database: Database) -> None:
    """One without pushes counts from its arrival."""
    connection(database)
    moment = LATER - KEEP
    came = [moment, moment - timedelta(milliseconds=1)]
    sent = [arrival(id=delivery_id(one), received_at=one, verdict="ignored") for one in came]
    with database.writing() as conn:
        accept.record(conn, sent)
    clean_up(database)
    assert [is_kept(database, one) for one in sent] == [True, False]


def test_one_process_deletes(postgres: Postgres) -> None:
    """Another takes over once that one has ended."""
    url = postgres.database()
    with closing(Database(url)) as second:
        second.migrate()
        connection(second)
        with closing(Database(url)) as first:
            clean_up(first)
            old = deliver(second, verdict="ignored")
            clean_up(second)
            assert is_kept(second, old)

        def is_deleted() -> bool:
            clean_up(second)
            return not is_kept(second, old)

        # The server needs time to notice that the first one's connection has ended.
        wait_for(is_deleted, "the second one deletes")
