"""Requests that are published again, and the packages with which requests are read."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from gateway.errors import Conflict, NotFound
from gateway.messages.execution_status import ExecutionStatus
from gateway.store import executions, packages, reruns, runs, supersession, work_queue
from gateway.store.database import Database
from gateway.store.runs import Outcome
from testing.records import NOW, A, B, connection
from tests.store.requests import LATER, MAIN, end, plan, push, request, stored
from tests.store.test_packages import BUILD, PACKAGE
from tests.store.test_refused import REQUEST

MINUTE = timedelta(minutes=1)


def supersede(database: Database, name: str, generation: int) -> None:
    """Make a request of `two_moves` the latest of its ref."""
    with database.writing() as conn:
        supersession.supersede(conn, request(name), ref=MAIN, generation=generation, commit=B)


def test_a_request_is_published_again_under_its_id(two_moves: Database) -> None:
    """It is pending again, in its old place, and counts the redrives; its age in the metrics is new."""
    for name, state in {"d1-a": "dropped", "d1-b": "published", "d2-a": "undeliverable"}.items():
        end(two_moves, name, state)
    with two_moves.writing() as conn:
        first = reruns.republish(conn, "d1-b", now=LATER)
        assert (first.state, first.reason, first.redrives) == ("pending", None, 1)
        assert (first.planned_at, first.published_at, first.republished_at) == (NOW, NOW, LATER)
        second = reruns.republish(conn, "d2-a", now=LATER)
        assert (second.reason, second.published_at) == (None, None)
        waiting = executions.pending(conn, limit=9, without=())
        assert [one.id for one in waiting] == ["d1-b", "d2-a", "d2-b"]
        assert work_queue.backlog(conn).oldest_request == LATER
        executions.record(conn, published=["d1-b"], refused={}, undeliverable={}, now=LATER + MINUTE)
        again = reruns.republish(conn, "d1-b", now=LATER + 2 * MINUTE)
    assert (again.redrives, again.republished_at) == (2, LATER + 2 * MINUTE)
    assert again.published_at == LATER + MINUTE
    assert {name: one.redrives for name, one in stored(two_moves).items()} == {
        "d1-a": 0,
        "d1-b": 2,
        "d2-a": 1,
        "d2-b": 0,
    }


def test_what_is_republished_gets_a_new_run(two_moves: Database) -> None:
    """What the runner of the first order has reported is over, also an end."""
    end(two_moves, "d2-b", "published")
    failed = ExecutionStatus(id="d2-b", state="failed", at=NOW, sequence=9)
    with two_moves.writing() as conn:
        runs.record(conn, [failed], now=NOW)
        again = reruns.republish(conn, "d2-b", now=LATER)
        assert (again.run, again.shown_state) == (None, "pending")
        accepted = ExecutionStatus(id="d2-b", state="accepted", at=NOW, sequence=1)
        assert runs.record(conn, [accepted], now=NOW) == [Outcome(state="accepted", is_change=True)]


def test_what_cannot_be_republished_says_why(two_moves: Database) -> None:
    """It waits already, or was never to be published."""
    supersede(two_moves, "d2-a", generation=2)
    end(two_moves, "d2-b", "dropped")
    for name, reason in (
        ("d1-a", "a later commit has superseded the execution"),
        ("d1-b", "the execution is pending"),
        ("d2-b", "an operator has dropped the execution: replay its delivery"),
    ):
        with two_moves.writing() as conn, pytest.raises(Conflict, match=reason):
            reruns.republish(conn, name, now=LATER)
    with two_moves.writing() as conn, pytest.raises(NotFound):
        reruns.republish(conn, "no such", now=LATER)
    assert {one.redrives for one in stored(two_moves).values()} == {0}


def test_what_is_republished_is_not_superseded(two_moves: Database) -> None:
    """An operator has decided that it runs, whatever was pushed later."""
    end(two_moves, "d1-a", "published")
    with two_moves.writing() as conn:
        reruns.republish(conn, "d1-a", now=LATER)
    supersede(two_moves, "d2-a", generation=2)
    supersede(two_moves, "d1-a", generation=1)
    with two_moves.writing() as conn:
        second = executions.get(conn, "d2-a").ref_update
        supersession.promote(conn, second, connection="c1", ref=MAIN, generation=9)
    assert stored(two_moves)["d1-a"].state == "pending"


def test_a_request_is_read_with_its_package(database: Database) -> None:
    """Of its id and format, as it is stored now; a republication uses it, and needs it."""
    connection(database)
    ref_update = push(database, "d1", A, B)
    named = {"id": PACKAGE.id, "url": "", "sha256": "0" * 64, "size": 1}
    for name, package_format in (("r1", PACKAGE.format), ("r2", "tar.zst"), ("r3", None)):
        package = None if package_format is None else {**named, "format": package_format}
        body = json.dumps({"commit": {"id": B}, "package": package}, separators=(",", ":")).encode()
        plan(database, ref_update, replace(REQUEST, id=name, trigger=name, body=body))
        end(database, name, "published")
    with database.writing() as conn:
        kept = packages.keep(conn, PACKAGE, BUILD)
    assert [stored(database)[name].package for name in ("r1", "r2", "r3")] == [kept, None, None]
    with database.writing() as conn:
        used = replace(kept, last_used_at=LATER)
        assert reruns.republish(conn, "r1", now=LATER).package == used
        assert reruns.republish(conn, "r3", now=LATER).state == "pending"
    expired = "its package has expired: replay delivery d1, which builds the package again"
    with database.writing() as conn, pytest.raises(Conflict, match=expired):
        reruns.republish(conn, "r2", now=LATER)
    assert stored(database)["r2"].state == "published"


def test_a_package_that_was_built_by_other_rules_replaces_an_expired_one(database: Database) -> None:
    """After a replay, a request is not bound to an id that no rules build any more."""
    connection(database)
    ref_update = push(database, "d1", A, B)
    former = {"id": "0" * 64, "url": "", "sha256": "0" * 64, "size": 1, "format": PACKAGE.format}
    for name, commit in (("r1", BUILD.commit), ("r2", B)):
        body = json.dumps({"commit": {"id": commit}, "package": former, "x": 1}, separators=(",", ":"))
        plan(database, ref_update, replace(REQUEST, id=name, trigger=name, body=body.encode()))
        end(database, name, "published")
    with database.writing() as conn:
        kept = packages.keep(conn, PACKAGE, BUILD)
    with database.writing() as conn, pytest.raises(Conflict, match="its package has expired"):
        reruns.republish(conn, "r2", now=LATER)
    with database.writing() as conn:
        again = reruns.republish(conn, "r1", now=LATER)
    assert again.package == replace(kept, last_used_at=LATER)
    message = json.loads(again.body)
    assert (message["package"]["id"], message["package"]["sha256"], message["x"]) == (kept.id, kept.sha256, 1)
    assert json.loads(stored(database)["r2"].body)["package"] == former
