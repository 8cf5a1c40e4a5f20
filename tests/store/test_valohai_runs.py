"""Which request a notification of Valohai is about, and what becomes of it."""

from dataclasses import replace
from typing import Any

from gateway.crypto.keyring import Keyring
from gateway.messages.valohai import read_notification
from gateway.store import platforms, runs, silence, valohai_runs
from gateway.store.database import Database
from gateway.store.platforms import Platform
from gateway.store.valohai_runs import Recorded
from testing.records import NOW, A, B, C, connection
from tests.messages.test_valohai import EXECUTION, PAGE, PROJECT, notification
from tests.store.requests import LATEST, TOPIC, plan, push
from tests.store.test_runs import record, report, run_of, shown

STEP = b'{"execution": {"kind": "step"}}'


def planned(database: Database, name: str, before: str | None, after: str, **more: Any) -> None:
    """Push a commit, and plan a request of the step `train` with the delivery's name."""
    ref_update = push(database, name, before, after, ref=more.pop("ref", "refs/heads/main"))  # type: ignore[arg-type]
    values = {"id": name, "delivery": name, "target": "train", "body": STEP, **more}
    plan(database, ref_update, replace(LATEST, **values))


def notify(database: Database, status: str, *, commit: str = A, **data: str) -> Recorded:
    """Record a notification about an execution of a commit."""
    named = {"valohai.commit-identifier": commit, "valohai.execution-status": status, **data}
    with database.writing() as conn:
        return valohai_runs.record(conn, "c1", read_notification(notification(data=named)), now=NOW)


def kept(database: Database) -> str:
    """Return why the notification was kept."""
    with database.reading() as conn:
        [report] = runs.unknown(conn, [EXECUTION])
    return report.reason


def test_the_request_of_the_commit_and_the_step_is_reported(database: Database) -> None:
    """From the beginning to the end, and repeatedly; with the page."""
    connection(database)
    planned(database, "d1", B, A)
    planned(database, "d2", A, C)
    assert notify(database, "created") == Recorded(execution="d1", state="accepted", is_change=True)
    assert notify(database, "started").state == "running"
    assert not notify(database, "created").is_change
    assert notify(database, "error").state == "failed"
    assert not notify(database, "error").is_change
    run = run_of(database, "d1")
    assert (run.url, run.runner, run.ended_at) == (PAGE, "Valohai", NOW)
    assert run.summary == "Execution finished: acme/digits/#736 (completed)"
    assert shown(database) == {"d1": "failed", "d2": "pending"}


def test_a_runner_that_reports_the_page_decides_which_request_it_is(database: Database) -> None:
    """What the runner reports counts beside it, with its own numbers."""
    connection(database)
    planned(database, "d1", B, A)
    planned(database, "d2", B, A, ref=TOPIC)
    record(database, report("d1", "accepted", 3, url=PAGE, summary="mine", runner="r"))
    assert notify(database, "started") == Recorded(execution="d1", state="running", is_change=True)
    record(database, report("d1", "running", 4, metrics={"a": 1}))
    assert notify(database, "stopped").state == "cancelled"
    run = run_of(database, "d1")
    assert (run.summary, run.runner, run.metrics, run.sequence) == ("mine", "r", {"a": 1.0}, 4)
    assert shown(database)["d2"] == "pending"


def test_what_cannot_be_told_is_kept_with_its_reason(database: Database) -> None:
    """Two requests of the same commit and step; or none; or none that goes on."""
    connection(database)
    planned(database, "d1", B, A)
    planned(database, "d2", B, A, ref=TOPIC)
    reason = "it may be about each of d2 and d1: let a runner report the page of the execution"
    assert notify(database, "complete") == Recorded(reason=reason)
    assert kept(database) == reason
    assert notify(database, "complete", commit=C).reason == kept(database)
    assert "has no execution of the step train" in kept(database)
    notify(database, "complete", **{"valohai.execution-step": "other"})
    assert "has no execution of the step other" in kept(database)
    record(database, report("d1", "failed"), report("d2", "running", url="https://ml.example/other"))
    notify(database, "complete")
    assert "has ended, or has another page" in kept(database)
    assert shown(database) == {"d1": "failed", "d2": "running"}


def test_a_pipeline_of_the_name_of_a_step_is_another_thing(database: Database) -> None:
    """As is the same commit of another connection."""
    connection(database)
    planned(database, "d1", B, A, body=b'{"execution": {"kind": "pipeline"}}')
    connection(database, "c2", name="other")
    moved = push(database, "d3", B, A, connection="c2")
    plan(database, moved, replace(LATEST, id="d3", delivery="d3", connection="c2", target="train", body=STEP))
    assert "has no execution" in (notify(database, "complete").reason or "")


def test_another_project_than_that_of_the_platform_is_not_believed(
    database: Database, keyring: Keyring
) -> None:
    """Two projects of Valohai may have the same repository."""
    connection(database)
    planned(database, "d1", B, A)
    for project, state in (("other", None), (PROJECT, "succeeded")):
        platform = Platform(url="https://app.valohai.com", project=project)
        with database.writing() as conn:
            platforms.name(conn, keyring, "c1", platform, "token")
        assert notify(database, "complete").state == state
    assert "another project" in kept(database)


def test_a_lost_run_comes_back(database: Database) -> None:
    """A notification has no number that could be compared."""
    connection(database)
    planned(database, "d1", B, A)
    notify(database, "started")
    with database.writing() as conn:
        assert silence.end(conn, limit=NOW - NOW, now=NOW) == ["d1"]
    assert notify(database, "started").state == "running"
