"""Cancellations: what is withdrawn, what runners are told, and what has ended already."""

import json

import pytest
from sqlalchemy import select

from gateway.errors import Conflict, NotFound
from gateway.messages.execution_cancelled import cancel_id
from gateway.messages.execution_states import ExecutionState
from gateway.messages.execution_status import ExecutionStatus, ReportedState
from gateway.store import cancellations, events, executions, reruns, runs
from gateway.store.database import Database
from gateway.store.executions import StoredRequest
from gateway.store.tables import events as event_table
from testing.records import NOW
from tests.store.requests import LATER, end, plan, request, stored


def cancel(database: Database, name: str) -> StoredRequest:
    """Cancel an execution."""
    with database.writing() as conn:
        return cancellations.cancel(conn, name, now=LATER)


def report(database: Database, name: str, state: ReportedState) -> runs.Outcome:
    """Report the state of an execution."""
    with database.writing() as conn:
        [outcome] = runs.record(conn, [ExecutionStatus(id=name, state=state, at=NOW, sequence=1)], now=NOW)
    return outcome


def confirm(database: Database, *names: str) -> None:
    """Record the broker's confirms."""
    with database.writing() as conn:
        executions.record(conn, published=names, refused={}, undeliverable={}, now=NOW)


def told(database: Database) -> list[tuple[str, int]]:
    """Return the executions that runners are told to stop, with the redrive of each."""
    with database.reading() as conn:
        found = [json.loads(event.body) for event in events.pending(conn, limit=9, without=())]
    return [(message["execution"], message["redrive"]) for message in found]


def shown_as(database: Database, state: ExecutionState) -> list[str]:
    """Return the executions that people see in a state."""
    with database.reading() as conn:
        found, _ = executions.page(conn, connection=None, delivery=None, state=state, before=None, limit=9)
    return [one.id for one in found]


def test_a_pending_request_is_withdrawn_at_once(two_moves: Database) -> None:
    """No runner is told, and what waits behind it is published; other withdrawn requests are `dropped`."""
    end(two_moves, "d1-b", "dropped")
    cancelled = cancel(two_moves, "d1-a")
    assert (cancelled.shown_state, cancelled.reason) == ("cancelled", "an operator has cancelled it")
    assert cancelled.cancel_requested_at == LATER
    assert cancel(two_moves, "d1-a") == cancelled
    assert told(two_moves) == []
    with two_moves.reading() as conn:
        assert [one.id for one in executions.pending(conn, limit=9, without=())] == ["d2-a", "d2-b"]
    assert (shown_as(two_moves, "cancelled"), shown_as(two_moves, "dropped")) == (["d1-a"], ["d1-b"])


def test_the_runner_of_a_published_request_is_told_to_stop(two_moves: Database) -> None:
    """Once; the state stays what the runner reports, and each answer to it names the cancellation."""
    confirm(two_moves, "d1-a", "d1-b")
    report(two_moves, "d1-b", "running")
    for name, state in (("d1-a", "published"), ("d1-b", "running")):
        cancelled = cancel(two_moves, name)
        assert (cancelled.shown_state, cancelled.cancel_requested_at) == (state, LATER)
        assert cancel(two_moves, name) == cancelled
    assert told(two_moves) == [("d1-a", 0), ("d1-b", 0)]
    with two_moves.reading() as conn:
        [event, _] = conn.execute(select(event_table).order_by(event_table.c.seq))
    assert (event.id, event.name, event.subject) == (cancel_id("d1-a", 0), "execution.cancelled", "digits")
    assert (event.connection, event.delivery, event.project) == ("c1", "d1", "digits")
    assert json.loads(event.body) == {
        "id": event.id,
        "execution": "d1-a",
        "redrive": 0,
        "project": "digits",
        "connection": "c1",
        "delivery": "d1",
        "trigger": "a",
        "requested_at": LATER.isoformat().replace("+00:00", "Z"),
    }
    assert report(two_moves, "d1-a", "accepted").cancel_requested_at == LATER
    assert report(two_moves, "d2-a", "accepted").cancel_requested_at is None
    report(two_moves, "d1-a", "cancelled")
    assert shown_as(two_moves, "cancelled") == ["d1-a"]
    assert cancel(two_moves, "d1-a").shown_state == "cancelled"


def test_a_request_that_was_being_sent_is_cancelled_after_its_confirm(two_moves: Database) -> None:
    """Otherwise a runner would be told before it has the request; one that was dropped then goes on."""
    cancel(two_moves, "d1-a")
    end(two_moves, "d1-b", "dropped")
    confirm(two_moves, "d1-a", "d1-b", "d2-a")
    assert told(two_moves) == [("d1-a", 0)]
    assert {name: one.shown_state for name, one in stored(two_moves).items()} == {
        "d1-a": "published",
        "d1-b": "published",
        "d2-a": "published",
        "d2-b": "pending",
    }


def test_what_a_runner_has_is_cancelled_although_it_waits(two_moves: Database) -> None:
    """Its confirm is not recorded, or it was republished; the runner may have an earlier order."""
    report(two_moves, "d1-a", "running")
    assert cancel(two_moves, "d1-a").shown_state == "running"
    confirm(two_moves, "d1-b")
    with two_moves.writing() as conn:
        reruns.republish(conn, "d1-b", now=NOW)
    assert cancel(two_moves, "d1-b").shown_state == "cancelled"
    assert told(two_moves) == [("d1-a", 0), ("d1-b", 1)]
    with two_moves.reading() as conn:
        assert [one.id for one in executions.pending(conn, limit=9, without=())] == ["d2-a", "d2-b"]


def test_a_later_order_is_not_cancelled(two_moves: Database) -> None:
    """Neither by a replay, nor by republishing, nor as a re-run."""
    cancel(two_moves, "d1-a")
    confirm(two_moves, "d1-b")
    cancel(two_moves, "d1-b")
    with two_moves.writing() as conn:
        again = reruns.rerun(conn, "d1-a", now=LATER)
        reruns.republish(conn, "d1-b", now=LATER)
    waiting = stored(two_moves)["d1-a"]
    plan(two_moves, waiting.ref_update, request("d1-a"))
    found = stored(two_moves)
    for name in ("d1-a", "d1-b", again.id):
        assert (found[name].shown_state, found[name].cancel_requested_at) == ("pending", None)


def test_what_has_ended_cannot_be_cancelled(two_moves: Database) -> None:
    """It says how it ended."""
    report(two_moves, "d1-a", "succeeded")
    report(two_moves, "d1-b", "failed")
    end(two_moves, "d2-a", "dropped")
    end(two_moves, "d2-b", "undeliverable")
    for name, reason in (
        ("d1-a", "the execution has ended: it succeeded"),
        ("d1-b", "the execution has ended: it failed"),
        ("d2-a", "an operator has dropped the execution: it was not published"),
        ("d2-b", "the broker refuses the execution: it was not published"),
    ):
        with pytest.raises(Conflict, match=reason):
            cancel(two_moves, name)
    with pytest.raises(NotFound):
        cancel(two_moves, "no such")
    assert {one.cancel_requested_at for one in stored(two_moves).values()} == {None}
    assert told(two_moves) == []
