"""Requests that run another one again: their ids, their messages, and what cannot be run again."""

import json
from dataclasses import replace

import pytest
from sqlalchemy import select, update

from gateway.errors import Conflict, NotFound
from gateway.messages.execution_status import ExecutionStatus, ReportedState
from gateway.store import commit_statuses, executions, packages, reruns, runs, supersession
from gateway.store.commit_statuses import Expected
from gateway.store.database import Database
from gateway.store.run_tables import commit_statuses as rows
from testing.records import NOW, A, B, C, connection
from tests.store.requests import LATER, LATEST, MAIN, end, plan, push, request, stored
from tests.store.test_packages import BUILD, PACKAGE


def rerun(database: Database, name: str, key: str | None = None) -> str:
    """Run a request again; return the id of the new one."""
    with database.writing() as conn:
        return reruns.rerun(conn, name, now=LATER, key=key).id


def report(database: Database, name: str, state: ReportedState) -> None:
    """Report the state of an execution."""
    with database.writing() as conn:
        runs.record(conn, [ExecutionStatus(id=name, state=state, at=NOW, sequence=1)], now=NOW)


def test_a_request_is_run_again_as_another_one_that_names_it(database: Database) -> None:
    """It is planned now, behind all that wait, with the same content; the first one does not change."""
    connection(database)
    ref_update = push(database, "d1", A, B)
    message = {"id": "r1", "project": "digits", "x": "é", "package": None, "status_url": None}
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
    first = replace(request("d1-a"), id="r1", lane="urgent", body=body)
    plan(database, ref_update, first, replace(request("d1-b"), id="r2"))
    end(database, "r1", "published")
    report(database, "r1", "failed")
    again = rerun(database, "r1")
    found = stored(database)
    with database.reading() as conn:
        assert [one.id for one in executions.pending(conn, limit=9, without=())] == ["r2", again]
    new = found[again]
    assert json.loads(new.body) == {**message, "id": again, "rerun_of": "r1"}
    assert list(json.loads(new.body))[-1] == "status_url"
    assert (new.rerun_of, new.run, new.planned_at, new.redrives) == ("r1", None, LATER, 0)
    names = ("connection", "delivery", "ref_update", "project", "trigger", "target", "subject", "lane")
    assert [getattr(new, name) for name in names] == [getattr(found["r1"], name) for name in names]
    assert (found["r1"].shown_state, found["r1"].rerun_by, found["r1"].body) == ("failed", [again], body)
    assert found["r2"].rerun_by == ()


def test_each_call_makes_a_request_and_a_key_only_one(two_moves: Database) -> None:
    """Also once the first has ended; a re-run can itself be run again."""
    end(two_moves, "d1-a", "published")
    made = [rerun(two_moves, "d1-a"), rerun(two_moves, "d1-a")]
    made += [rerun(two_moves, "d1-a", "k"), rerun(two_moves, "d1-a", "2")]
    assert len(set(made)) == 4
    report(two_moves, "d1-a", "running")
    assert rerun(two_moves, "d1-a", "k") == made[2]
    end(two_moves, made[2], "published")
    deeper = rerun(two_moves, made[2], "k")
    found = stored(two_moves)
    assert found["d1-a"].rerun_by == made
    assert (found[made[2]].rerun_by, found[deeper].rerun_of) == ([deeper], made[2])


@pytest.mark.parametrize("state", ["dropped", "undeliverable", "superseded"])
def test_what_was_never_published_can_be_run_again(two_moves: Database, state: str) -> None:
    """An operator has decided it: no later commit supersedes it."""
    if state == "superseded":
        with two_moves.writing() as conn:
            supersession.supersede(conn, request("d2-a"), ref=MAIN, generation=2, commit=C)
    else:
        end(two_moves, "d1-a", state)
    again = rerun(two_moves, "d1-a")
    with two_moves.writing() as conn:
        supersession.supersede(conn, request("d2-a"), ref=MAIN, generation=2, commit=C)
        second = executions.get(conn, "d2-a").ref_update
        supersession.promote(conn, second, connection="c1", ref=MAIN, generation=9)
    found = stored(two_moves)
    assert (found[again].state, found["d1-a"].state) == ("pending", state)


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled", "rejected"])
def test_what_has_ended_can_be_run_again(two_moves: Database, state: ReportedState) -> None:
    """Even before the broker's confirm is recorded, or where no broker is."""
    report(two_moves, "d1-a", state)
    again = rerun(two_moves, "d1-a")
    assert stored(two_moves)[again].shown_state == "pending"


def test_what_cannot_be_run_again_says_why(two_moves: Database) -> None:
    """It will be executed, or is being executed."""
    report(two_moves, "d1-b", "accepted")
    report(two_moves, "d2-a", "running")
    for name, reason in (
        ("d1-a", "the execution is pending: it is published as soon as the broker accepts it"),
        ("d1-b", "a runner has accepted the execution: wait for its end, or cancel it"),
        ("d2-a", "the execution is running: wait for its end, or cancel it"),
    ):
        with pytest.raises(Conflict, match=reason):
            rerun(two_moves, name)
    with pytest.raises(NotFound):
        rerun(two_moves, "no such")
    assert len(stored(two_moves)) == 4


def test_a_rerun_uses_a_package_that_is_stored(database: Database) -> None:
    """Its own, or the one that a replay has built for an expired one; the first request keeps its body."""
    connection(database)
    ref_update = push(database, "d1", A, B)
    former = {"id": "0" * 64, "url": "", "sha256": "0" * 64, "size": 1, "format": PACKAGE.format}
    for name, commit in (("r1", BUILD.commit), ("r2", B)):
        body = json.dumps({"commit": {"id": commit}, "package": former}, separators=(",", ":")).encode()
        plan(database, ref_update, replace(LATEST, id=name, trigger=name, body=body))
        end(database, name, "published")
    with database.writing() as conn:
        kept = packages.keep(conn, PACKAGE, BUILD)
    with pytest.raises(Conflict, match="its package has expired: replay delivery d1"):
        rerun(database, "r2")
    again = rerun(database, "r1")
    found = stored(database)
    assert found[again].package == replace(kept, last_used_at=LATER)
    assert json.loads(found["r1"].body)["package"] == former


def test_the_provider_shows_the_rerun_in_place_of_the_first_run(database: Database) -> None:
    """In the same context, so that a required check is the newest run's; other contexts are left alone."""
    connection(database)
    ref_update = push(database, "d1", A, B)
    first, other = (replace(LATEST, id=f"r-{name}", trigger=name) for name in "ab")
    plan(database, ref_update, first, other)
    end(database, "r-a", "published")
    with database.writing() as conn:
        expected = [
            Expected(commit=B, context=f"pushgate/{one.trigger}", ref=MAIN, delivery="d1", request=one.id)
            for one in (first, other)
        ]
        commit_statuses.expect(conn, "c1", expected, now=NOW)
        conn.execute(update(rows).values(due_at=None))
    again = rerun(database, "r-a")
    with database.reading() as conn:
        found = conn.execute(select(rows.c.execution, rows.c.due_at).order_by(rows.c.context)).all()
    requests = stored(database)
    assert [tuple(row) for row in found] == [
        (requests[again].seq, commit_statuses.CHANGED),
        (requests["r-b"].seq, None),
    ]
