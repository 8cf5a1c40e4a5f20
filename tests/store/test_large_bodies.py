"""Reading requests takes bounded memory, however large and many they are."""

import pytest

from gateway.store import accept, executions, work_queue
from gateway.store.database import Database
from gateway.store.executions import OMITTED, READ_BYTES
from testing.records import NOW, A, arrival, connection, move, request

LARGE = b" " * (READ_BYTES // 2)


@pytest.fixture
def ids(database: Database) -> list[str]:
    """Return the ids of five large requests of one delivery, in the order in which they were planned."""
    connection(database)
    ids = [f"r{number}" for number in range(5)]
    requests = [request(name, trigger=name, body=LARGE) for name in ids]
    with database.writing() as conn:
        accept.record(conn, [arrival(move(None, A), id="d1")])
        [update] = work_queue.pending(conn, "c1", limit=1)
        executions.add(conn, requests, ref_update=update.seq, now=NOW)
    return ids


def test_a_relay_takes_so_many_bytes_at_once(database: Database, ids: list[str]) -> None:
    """The oldest first; a single one is taken however large it is."""
    with database.reading() as conn:
        taken = executions.pending(conn, limit=100, without=())
        one = executions.pending(conn, limit=100, without=(), most_bytes=1)
    assert [request.id for request in taken] == ids[:2]
    assert [request.id for request in one] == ids[:1]


def test_a_page_ends_early_and_says_so(database: Database, ids: list[str]) -> None:
    """The newest first; later pages have the rest."""
    seen, before = [], None
    with database.reading() as conn:
        while True:
            page, are_older = executions.page(
                conn, connection="c1", delivery=None, state=None, before=before, limit=50
            )
            seen += [request.id for request in page]
            assert len(page) <= 2
            if not are_older:
                break
            before = page[-1].seq
    assert seen == ids[::-1]


def test_a_follower_gets_them_in_parts(database: Database, ids: list[str]) -> None:
    """It requests those after the last one seen."""
    with database.reading() as conn:
        first = executions.planned_after(conn, 0, limit=100)
        second = executions.planned_after(conn, first[-1].seq, limit=100)
    assert [request.id for request in first + second] == ids[:4]


def test_a_delivery_is_explained_whole_with_some_bodies_left_out(database: Database, ids: list[str]) -> None:
    """No request is missing; left-out bodies are empty."""
    with database.reading() as conn:
        found = executions.of_deliveries(conn, ["d1"])
    assert [request.id for request in found] == ids
    assert [request.body == OMITTED for request in found] == [False, False, True, True, True]
