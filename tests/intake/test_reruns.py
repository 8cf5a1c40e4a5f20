"""GitHub's button Re-run: what is executed again, and what is shown of the delivery."""

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.intake.reruns import Reruns
from gateway.messages.execution_status import ExecutionStatus
from gateway.store import commit_statuses, deliveries, executions, runs
from gateway.store.commit_statuses import Expected
from gateway.store.database import Database
from testing.corpus import cases
from testing.records import NOW
from tests.intake.local import Answer, asked, connect, scope
from tests.store.requests import end, plan, push, request

[RUN] = [case for case in cases() if str(case) == "github/check-run-rerequested"]
[SUITE] = [case for case in cases() if str(case) == "github/check-suite-rerequested"]
COMMIT = json.loads(RUN.body)["check_run"]["head_sha"]
URL = "https://github.com/acme/digits.git"


@pytest.fixture
def failed(database: Database) -> Database:
    """Store a commit with the executions r1 and r2, which have failed, in contexts of their own."""
    connect(database, url=URL)
    ref_update = push(database, "d1", "6" * 40, COMMIT)
    names = ("r1", "r2")
    plan(database, ref_update, *(replace(request(f"d1-{name}"), id=name) for name in names))
    common: dict[str, Any] = {"commit": COMMIT, "ref": "refs/heads/main", "delivery": "d1"}
    verdicts = [Expected(**common, context=f"pushgate/{name}", request=name) for name in names]
    for name in names:
        end(database, name, "published")
    with database.writing() as conn:
        commit_statuses.expect(conn, "c1", verdicts, now=NOW)
        for name in names:
            runs.record(conn, [ExecutionStatus(id=name, state="failed", at=NOW, sequence=1)], now=NOW)
    return database


def clicked(database: Database, body: Any, event: str = "check_run", delivery: str = "g1") -> Answer:
    """Send the event of a click on the button."""
    sent = json.dumps(body).encode()
    headers = {"x-github-event": event, "x-github-delivery": delivery}
    reruns = Reruns(database, notify=lambda: None)
    return asked(database, scope(sent, headers=headers), sent, reruns=reruns)


def check(**changes: Any) -> Any:
    """Return the event of a check run, with other fields."""
    body = json.loads(RUN.body)
    body["check_run"].update(changes)
    return body


def reruns_of(database: Database, name: str) -> tuple[str, ...]:
    """Return the ids of the executions that run another one again."""
    with database.reading() as conn:
        return tuple(executions.get(conn, name).rerun_by)


def test_the_execution_of_a_check_runs_again(failed: Database) -> None:
    """Once for a delivery, however often it is sent."""
    answer = clicked(failed, check(external_id="r1"))
    [again] = reruns_of(failed, "r1")
    assert (answer.status, answer.body["verdict"]) == (202, "accepted")
    assert answer.body["reason"] == f"r1 is executed again as {again}"
    with failed.reading() as conn:
        stored = deliveries.get(conn, answer.body["delivery"])
    assert (stored.event, stored.reason) == ("check_run", answer.body["reason"])
    assert clicked(failed, check(external_id="r1")).body["verdict"] == "duplicate"
    assert reruns_of(failed, "r1") == (again,)
    assert reruns_of(failed, "r2") == ()


def test_all_executions_of_a_commit_run_again(failed: Database) -> None:
    """By the button “Re-run all checks”."""
    answer = clicked(failed, json.loads(SUITE.body), "check_suite")
    assert answer.body["verdict"] == "accepted"
    assert [len(reruns_of(failed, name)) for name in ("r1", "r2")] == [1, 1]
    assert clicked(failed, json.loads(SUITE.body), "check_suite").body["verdict"] == "duplicate"
    assert [len(reruns_of(failed, name)) for name in ("r1", "r2")] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"external_id": "", "name": "pushgate/r2"}, "r2 is executed again as "),
        ({"external_id": "of another", "name": "pushgate/r2"}, "r2 is executed again as "),
        ({"external_id": "", "name": "pushgate/r3"}, "nothing was executed for pushgate/r3"),
        ({"external_id": "r1", "head_sha": "1" * 40}, "r1 is executed again as "),
    ],
)
def test_a_check_is_found_by_its_execution_or_by_its_context(
    failed: Database, changes: dict[str, str], reason: str
) -> None:
    """A commit that could not be planned has no execution."""
    assert clicked(failed, check(**changes)).body["reason"].startswith(reason)


def test_what_runs_or_belongs_to_others_does_not_run_again(failed: Database) -> None:
    """The reason is that of the delivery."""
    clicked(failed, check(external_id="r1"))
    [again] = reruns_of(failed, "r1")
    answer = clicked(failed, check(external_id=again), delivery="g2")
    assert answer.body["verdict"] == "ignored"
    assert answer.body["reason"].startswith(f"{again} is not executed again: the execution is pending")
    other = json.loads(json.dumps(check(external_id="r2")).replace("acme/digits", "acme/letters"))
    answer = clicked(failed, other, delivery="g3")
    assert answer.body["reason"].startswith("other repository")
    assert reruns_of(failed, "r2") == ()


def test_an_echo_of_a_check_is_not_stored(failed: Database) -> None:
    """GitHub reports each check run that Pushgate writes."""
    body = check()
    body["action"] = "completed"
    answer = clicked(failed, body)
    assert (answer.status, answer.body["delivery"], answer.body["verdict"]) == (202, None, "ignored")
