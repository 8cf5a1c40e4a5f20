"""What the settlement of a ref update records, and of which updates."""

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from gateway.crypto.keyring import Keyring
from gateway.store import accept, deliveries, executions, platforms, supersession, work_queue
from gateway.store.database import Database
from gateway.store.deliveries import UpdateState
from gateway.store.platforms import Platform
from gateway.store.tables import ref_updates
from gateway.store.work_queue import Postponement, Settlement
from testing.records import NOW, A, B, C, arrival, connection, move
from tests.store.work import DELIVERY, LATER, claim, pending, push, request, settle


def kept(database: Database) -> tuple[Any, ...]:
    """Return the stored settlement of the only ref update."""
    with database.reading() as conn:
        row = conn.execute(ref_updates.select()).one()
    return row.state, row.peeled, row.facts, row.settled_at


def test_settling_fills_the_outbox_in_one_transaction(database: Database) -> None:
    """The update ends and its request is pending, or neither."""
    connection(database)
    with database.writing() as conn:
        accept.record(conn, [arrival(move(A, B), id=DELIVERY)])
    claim(database, "w1")
    [update] = pending(database)
    end = Settlement(update=update, state="planned", reason="1 request", requests=(request(),))
    for _ in range(2):
        with database.writing() as conn:
            work_queue.settle(conn, "c1", [end], owner="w1", now=NOW)
    with database.reading() as conn:
        waiting = executions.pending(conn, limit=10, without=())
    assert [stored.id for stored in waiting] == ["request-1"]
    assert pending(database) == []


ODD = "caf\udce9 and half a pair \ud83d and \0"


SHOWN = r"caf\xe9 and half a pair \ud83d and \x00"


def test_text_that_no_database_takes_is_escaped_where_it_is_kept(database: Database) -> None:
    """A file name that is not UTF-8 may be in a reason or a verdict; its update ends nevertheless."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    [update] = pending(database)
    verdicts = [{"trigger": "t", "matched": True, "reason": ODD, "failure": None}]
    with database.writing() as conn:
        work_queue.record_progress(conn, [update], ODD)
        progress = deliveries.get(conn, update.delivery).updates[0].reason
        late = Postponement(update=update, due_at=LATER, reason=ODD)
        work_queue.settle(conn, "c1", [], owner="w1", now=NOW, postponed=[late])
        put_off = deliveries.get(conn, update.delivery).updates[0].reason
        settled = Settlement(update=update, state="failed", reason=ODD, verdicts=verdicts)
        work_queue.settle(conn, "c1", [settled], owner="w1", now=NOW)
        [found] = deliveries.get(conn, update.delivery).updates
    assert (progress, put_off, found.reason) == (SHOWN, SHOWN, SHOWN)
    assert found.verdicts == [{**verdicts[0], "reason": SHOWN}]


def test_text_that_was_kept_before_it_was_escaped_is_shown(database: Database) -> None:
    """Rows of earlier versions may hold half a surrogate pair, which an answer cannot contain."""
    connection(database)
    push(database, (A, B))
    kept = json.dumps([{"trigger": "t", "matched": True, "reason": "caf\udce9"}])
    with database.writing() as conn:
        conn.execute(text("UPDATE ref_updates SET verdicts = :kept"), {"kept": kept})
        [delivery] = deliveries.page(conn, connection="c1", verdict=None, before=None, limit=1)
    assert delivery.updates[0].verdicts[0]["reason"] == r"caf\xe9"


def test_an_end_is_kept_with_all_that_is_shown_of_it(database: Database) -> None:
    """Including a tag's commit, which a later settlement without it does not remove, and the facts."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    [update] = pending(database)
    end = Settlement(update=update, state="planned", reason="", peeled=C, facts=b"facts")
    settle(database, end)
    assert kept(database) == ("planned", C, b"facts", NOW)
    with database.writing() as conn:
        work_queue.replay(conn, update.delivery, now=LATER)
    settle(database, replace(end, peeled=None, facts=None), now=LATER)
    assert kept(database) == ("planned", C, None, LATER)


@pytest.mark.parametrize("state", ["gone", "planned"])
def test_what_has_ended_is_neither_ended_again_nor_put_off(database: Database, state: UpdateState) -> None:
    """An interrupted worker may record twice: the first settlement counts."""
    connection(database)
    push(database, (A, B))
    claim(database, "w1")
    [update] = pending(database)
    settle(database, Settlement(update=update, state=state, reason="so it is"))
    late = Postponement(update=update, due_at=LATER, reason="away")
    settle(database, Settlement(update=update, state="failed", reason="no"), now=LATER, postponed=[late])
    with database.writing() as conn:
        work_queue.record_progress(conn, [update], "fetching")
        work_queue.make_due(conn, "c1", now=LATER)
        [found] = deliveries.get(conn, update.delivery).updates
    assert (found.state, found.reason, found.settled_at) == (state, "so it is", NOW)
    with database.reading() as conn:
        assert conn.execute(ref_updates.select()).one().tries == 0


def test_an_end_says_nothing_of_the_updates_beside_it(database: Database) -> None:
    """Each update has its own end, delay and progress."""
    connection(database)
    push(database, (A, B), (B, C), (C, A), (A, C))
    claim(database, "w1")
    first, second, third, fourth = pending(database)
    with database.writing() as conn:
        work_queue.record_progress(conn, [third], "fetching")
    late = Postponement(update=second, due_at=LATER, reason="away")
    settle(database, Settlement(update=first, state="gone", reason="it is gone"), postponed=[late])
    with database.reading() as conn:
        ends = [deliveries.get(conn, one.delivery).updates[0] for one in (first, second, third, fourth)]
    assert [(one.state, one.reason) for one in ends] == [
        ("gone", "it is gone"),
        ("pending", "away"),
        ("pending", "fetching"),
        ("pending", None),
    ]


@pytest.mark.parametrize(
    ("after", "state", "is_asked"),
    [(B, "planned", True), (None, "planned", False), (B, "gone", False)],
    ids=["planned", "deleted", "gone"],
)
def test_the_platform_fetches_what_was_planned(
    database: Database, keyring: Keyring, after: str | None, state: UpdateState, is_asked: bool
) -> None:
    """Not for a deleted branch, nor for a missing commit."""
    connection(database)
    with database.writing() as conn:
        platforms.name(conn, keyring, "c1", Platform(url="https://app.example", project="p"), "token")
        accept.record(conn, [arrival(move(A, after))])
    claim(database, "w1")
    [update] = pending(database)
    settle(database, Settlement(update=update, state=state, reason=""))
    with database.reading() as conn:
        assert platforms.is_due(conn, now=NOW) is is_asked


def test_of_a_latest_trigger_the_request_of_the_latest_move_stays(database: Database) -> None:
    """It names the commit of the move, for a tag the tag's commit."""
    connection(database)
    push(database, (A, B), (B, C))
    claim(database, "w1")
    for number, update in enumerate(pending(database)):
        new = replace(request(number), delivery=update.delivery, is_latest_only=number == 1)
        settle(database, Settlement(update=update, state="planned", reason="", requests=(new,), peeled=A))
    assert states(database) == {"request-0": "superseded", "request-1": "pending"}
    with database.reading() as conn:
        reason = executions.get(conn, "request-0").reason
    assert reason == f"refs/heads/main has moved on to {A}, which has the request request-1"


def test_which_move_is_the_latest_is_read_when_it_ends(database: Database) -> None:
    """During the planning the remote may have shown that it comes after the others."""
    connection(database)
    push(database, (A, B), (B, C))
    claim(database, "w1")
    first, second = pending(database)
    requests = {
        one.seq: replace(request(one.seq), delivery=one.delivery, is_latest_only=True)
        for one in (first, second)
    }
    settle(database, Settlement(update=second, state="planned", reason="", requests=(requests[second.seq],)))
    with database.writing() as conn:
        supersession.promote(conn, first.seq, connection="c1", ref=first.ref, generation=9)
    settle(database, Settlement(update=first, state="planned", reason="", requests=(requests[first.seq],)))
    assert states(database) == {requests[first.seq].id: "pending", requests[second.seq].id: "superseded"}


def states(database: Database) -> dict[str, str]:
    """Return the states of all requests."""
    every: dict[str, Any] = dict.fromkeys(("connection", "delivery", "state", "before"))
    with database.reading() as conn:
        found, _ = executions.page(conn, limit=9, **every)
    return {one.id: one.state for one in found}


def test_a_settlement_without_a_request_takes_nothing_back(database: Database) -> None:
    """Nor does a settlement whose request is for every push."""
    connection(database)
    push(database, (A, B), (B, C), (C, A))
    claim(database, "w1")
    first, second, third = pending(database)
    mine = replace(request(1), delivery=first.delivery)
    other = replace(request(2), delivery=third.delivery)
    settle(database, Settlement(update=first, state="planned", reason="", requests=(mine,)))
    settle(database, Settlement(update=second, state="planned", reason=""))
    settle(database, Settlement(update=third, state="planned", reason="", requests=(other,)))
    assert states(database) == {"request-1": "pending", "request-2": "pending"}
