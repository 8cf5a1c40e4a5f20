"""Requests that the broker never accepts, and those that an operator drops."""

from dataclasses import replace

import pytest

from gateway.errors import Invalid, NotFound
from gateway.store import accept, executions, work_queue
from gateway.store.database import Database
from gateway.store.executions import NewRequest, StoredRequest
from testing.records import NOW, A, arrival, connection, move

REQUEST = NewRequest(
    id="r1",
    connection="c1",
    delivery="d1",
    project="digits",
    trigger="main",
    target="train",
    subject="digits",
    body=b"{}",
)


@pytest.fixture
def ref_update(database: Database) -> int:
    """Return the number of a ref update with two pending requests, r1 and r2."""
    connection(database)
    with database.writing() as conn:
        accept.record(conn, [arrival(move(None, A), id="d1")])
        [update] = work_queue.pending(conn, "c1", limit=1)
        both = [REQUEST, replace(REQUEST, id="r2", trigger="second")]
        executions.add(conn, both, ref_update=update.seq, now=NOW)
    return update.seq


def pending(database: Database) -> list[str]:
    """Return the ids of the requests that a relay would publish."""
    with database.reading() as conn:
        return [one.id for one in executions.pending(conn, limit=10, without=())]


def stored(database: Database, name: str) -> StoredRequest:
    """Return a request."""
    with database.reading() as conn:
        return executions.get(conn, name)


@pytest.mark.usefixtures("ref_update")
def test_what_the_broker_never_takes_ends_with_the_reason(database: Database) -> None:
    """It is not published again; a request already published stays so."""
    with database.writing() as conn:
        executions.record(conn, published=["r2"], refused={}, undeliverable={}, now=NOW)
        reasons = {"r1": "it is too large", "r2": "it is too large"}
        executions.record(conn, published=[], refused={}, undeliverable=reasons, now=NOW)
    assert pending(database) == []
    assert (stored(database, "r1").state, stored(database, "r1").reason) == (
        "undeliverable",
        "it is too large",
    )
    assert stored(database, "r2").state == "published"


@pytest.mark.usefixtures("ref_update")
def test_a_pending_request_can_be_dropped(database: Database) -> None:
    """Once; a request in flight meanwhile is published nevertheless, and marked so."""
    with database.writing() as conn:
        assert executions.drop(conn, "r1").state == "dropped"
    assert pending(database) == ["r2"]
    with database.writing() as conn:
        with pytest.raises(
            Invalid, match=r"only a pending or undeliverable execution can .* this one is dropped"
        ):
            executions.drop(conn, "r1")
        with pytest.raises(NotFound):
            executions.drop(conn, "r3")
        executions.record(conn, published=["r1"], refused={}, undeliverable={}, now=NOW)
    assert stored(database, "r1").state == "published"


def test_a_replay_makes_them_pending_again(database: Database, ref_update: int) -> None:
    """With their new content: the commit is the same, the connection's rules may differ."""
    with database.writing() as conn:
        executions.drop(conn, "r1")
        executions.record(conn, published=[], refused={}, undeliverable={"r2": "it is too large"}, now=NOW)
        again = [replace(REQUEST, body=b"[]"), replace(REQUEST, id="r2", trigger="second", body=b"[2]")]
        executions.add(conn, again, ref_update=ref_update, now=NOW)
    assert pending(database) == ["r1", "r2"]
    assert [(stored(database, name).body, stored(database, name).reason) for name in ("r1", "r2")] == [
        (b"[]", None),
        (b"[2]", None),
    ]
