"""Reports of runners: what is recorded of them, in batches, in any order, and from several processes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, get_args

from sqlalchemy import func, select

from gateway.messages.execution_states import ExecutionState, Run
from gateway.messages.execution_status import ExecutionStatus, ReportedState
from gateway.store import executions, runs
from gateway.store.database import Database
from gateway.store.execution_tables import execution_bodies
from gateway.store.execution_tables import executions as execution_table
from gateway.store.run_tables import runs as run_table
from gateway.store.run_tables import unknown_reports
from gateway.store.runs import MAX_UNKNOWN, EndedRun, Outcome
from testing.records import NOW
from tests.store.requests import ALL, end, stored

PAGE = "https://ml.example/runs/7"
ALL_NAMES = ["d1-a", "d1-b", "d2-a", "d2-b"]


def report(
    execution: str, state: ReportedState = "running", sequence: int = 1, **more: Any
) -> ExecutionStatus:
    """Return a report, reached so many seconds after NOW as its sequence says."""
    at = NOW + timedelta(seconds=sequence)
    return ExecutionStatus(id=execution, state=state, at=at, sequence=sequence, **more)


def record(database: Database, *reports: ExecutionStatus, minutes: int = 0) -> list[Outcome]:
    """Record reports in one transaction."""
    with database.writing() as conn:
        return runs.record(conn, reports, now=NOW + timedelta(minutes=minutes))


def shown(database: Database) -> dict[str, ExecutionState]:
    """Return the states that people see."""
    return {name: request.shown_state for name, request in stored(database).items()}


def run_of(database: Database, name: str) -> Run:
    """Return the run of an execution."""
    run = stored(database)[name].run
    assert run is not None
    return run


def test_a_batch_of_reports_is_recorded_with_all_that_they_say(two_moves: Database) -> None:
    """Several about one execution, others about none; each has its outcome."""
    end(two_moves, "d1-a", "published")
    outcomes = record(
        two_moves,
        report("d1-a", "accepted", 1, runner="r 1", url=PAGE),
        report("d2-a", "rejected", 1, summary="no such image"),
        report("d1-a", "succeeded", 3, metrics={"a": 0.5}, outputs=({"name": "m", "url": "s3://b/m"},)),
        report("d1-a", "running", 2),
        report("other", "running", 2),
    )
    runs = [run_of(two_moves, name) for name in ("d2-a", "d1-a")]
    first, second = (
        EndedRun(
            execution=f"{delivery}-a",
            delivery=delivery,
            project="digits",
            trigger="a",
            target="train",
            redrives=0,
            run=run,
        )
        for delivery, run in zip(("d2", "d1"), runs, strict=True)
    )
    assert outcomes == [
        Outcome(state="accepted", is_change=True),
        Outcome(state="rejected", is_change=True, ended=first),
        Outcome(state="succeeded", is_change=True, ended=second),
        Outcome(state="succeeded", is_change=False),
        Outcome(state=None, is_change=False),
    ]
    assert run_of(two_moves, "d1-a") == Run(
        state="succeeded",
        sequence=3,
        reported_at=NOW,
        accepted_at=NOW + timedelta(seconds=1),
        ended_at=NOW + timedelta(seconds=3),
        url=PAGE,
        metrics={"a": 0.5},
        outputs=[{"name": "m", "url": "s3://b/m"}],
        runner="r 1",
    )
    assert shown(two_moves) == {
        "d1-a": "succeeded",
        "d1-b": "pending",
        "d2-a": "rejected",
        "d2-b": "pending",
    }


def test_a_report_before_the_confirm_is_recorded_is_recorded_too(two_moves: Database) -> None:
    """A runner may be faster than the relay; the request is still published, and is not sent again."""
    assert record(two_moves, report("d1-a")) == [Outcome(state="running", is_change=True)]
    assert stored(two_moves)["d1-a"].state == "pending"
    end(two_moves, "d1-a", "published")
    assert stored(two_moves)["d1-a"].state == "published"
    assert shown(two_moves)["d1-a"] == "running"


def test_a_repetition_in_a_later_batch_changes_nothing(two_moves: Database) -> None:
    """Not even the time of the report."""
    record(two_moves, report("d1-a", "failed", 2, log_url=PAGE))
    before = run_of(two_moves, "d1-a")
    again = record(two_moves, report("d1-a", "failed", 2), report("d1-a", "running", 1), minutes=5)
    assert again == [Outcome(state="failed", is_change=False)] * 2
    assert run_of(two_moves, "d1-a") == before


def test_requests_are_found_by_the_state_that_is_shown(two_moves: Database) -> None:
    """A published request with a report is not found as published."""
    for name in ("d1-a", "d1-b", "d2-a"):
        end(two_moves, name, "published")
    record(two_moves, report("d1-a", "failed"), report("d1-b", "accepted"))

    def found(state: ExecutionState) -> list[str]:
        with two_moves.reading() as conn:
            page, _ = executions.page(conn, limit=9, **{**ALL, "state": state})  # type: ignore[arg-type]
        return [request.id for request in page]

    every = {state: found(state) for state in get_args(ExecutionState)}
    assert {state: names for state, names in every.items() if names} == {
        "failed": ["d1-a"],
        "accepted": ["d1-b"],
        "published": ["d2-a"],
        "pending": ["d2-b"],
    }


def test_the_relay_reads_no_runs(two_moves: Database) -> None:
    """What it publishes does not depend on them."""
    record(two_moves, report("d1-a"))
    with two_moves.reading() as conn:
        assert [request.run for request in executions.pending(conn, limit=9, without=())] == [None] * 4


def test_reports_from_several_processes_come_to_the_highest(two_moves: Database) -> None:
    """Each transaction sees what the one before has written."""
    states: list[ReportedState] = ["accepted", "running", "running", "running", "succeeded"]
    reports = [
        report(name, state, sequence, summary=f"{sequence}")
        for sequence, state in enumerate(states)
        for name in ALL_NAMES
    ]
    batches = [reports[start::7] for start in range(7)] * 3
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda batch: record(two_moves, *batch), batches))
    assert shown(two_moves) == dict.fromkeys(ALL_NAMES, "succeeded")
    assert {run_of(two_moves, name).summary for name in ALL_NAMES} == {"4"}


def changes(database: Database, after: int, limit: int = 9) -> list[str]:
    """Return the ids of the executions that have changed, in the order of the changes."""
    with database.reading() as conn:
        numbers = list(runs.changed_after(conn, after, limit=limit).values())
        found = {request.seq: request for request in executions.numbered(conn, numbers)}
        assert all(request.body == executions.OMITTED for request in found.values())
        return [found[number].id for number in numbers]


def test_a_follower_sees_each_execution_at_its_last_change(two_moves: Database) -> None:
    """What changes again moves to the end; a repetition is no change."""
    with two_moves.reading() as conn:
        assert runs.last_revision(conn) == 0
    record(two_moves, report("d2-b"), report("d1-a"))
    record(two_moves, report("d2-b"), report("d1-b"))
    assert changes(two_moves, 0) == ["d2-b", "d1-a", "d1-b"]
    record(two_moves, report("d2-b", "failed", 2))
    assert changes(two_moves, 0) == ["d1-a", "d1-b", "d2-b"]
    assert changes(two_moves, 0, limit=2) == ["d1-a", "d1-b"]
    assert changes(two_moves, 3) == ["d2-b"]
    with two_moves.reading() as conn:
        assert runs.last_revision(conn) == 4


def unknown(database: Database, *ids: str) -> list[tuple[str, str, str | None, int]]:
    """Return what is kept about these ids."""
    with database.reading() as conn:
        return [(one.execution, one.state, one.runner, one.count) for one in runs.unknown(conn, ids)]


def test_an_unknown_id_is_kept_with_its_reason(two_moves: Database) -> None:
    """Repetitions are counted; the latest report is shown."""
    record(two_moves, report("x", "accepted", runner="r"), report("x", "running", runner="r"))
    record(two_moves, report("x", "failed", runner="r2"), report("y"), minutes=3)
    assert sorted(unknown(two_moves, "x", "y", "z", "d1-a")) == [
        ("x", "failed", "r2", 3),
        ("y", "running", None, 1),
    ]
    with two_moves.reading() as conn:
        [kept] = runs.unknown(conn, ["x"])
    assert (kept.first_at, kept.last_at) == (NOW, NOW + timedelta(minutes=3))
    assert "there is no execution with this id" in kept.reason


def test_the_record_of_unknown_ids_is_bounded(two_moves: Database) -> None:
    """A runner that reports nonsense takes no more room; what is reported last is kept."""
    record(two_moves, report("oldest"))
    record(two_moves, *(report(f"x{number}") for number in range(MAX_UNKNOWN - 1)), minutes=1)
    assert unknown(two_moves, "oldest") != []
    record(two_moves, report("newest"), minutes=2)
    assert unknown(two_moves, "oldest") == []
    with two_moves.reading() as conn:
        assert conn.execute(select(func.count()).select_from(unknown_reports)).scalar() == MAX_UNKNOWN


def test_a_run_is_deleted_with_its_execution(two_moves: Database) -> None:
    """Also by a version that has no such table: the database does it."""
    record(two_moves, *map(report, ALL_NAMES))
    with two_moves.writing() as conn:
        conn.execute(execution_bodies.delete())
        conn.execute(execution_table.delete().where(execution_table.c.delivery == "d1"))
        assert conn.execute(select(func.count()).select_from(run_table)).scalar() == 2


def test_a_revision_is_never_given_again(two_moves: Database) -> None:
    """Whoever follows changes would miss the second of two with one number."""
    end(two_moves, "d1-a", "published")
    record(two_moves, report("d1-a"), report("d1-b"))
    with two_moves.writing() as conn:
        before = runs.last_revision(conn)
        newest = runs.changed_after(conn, before - 1, limit=9)[before]
        runs.forget(conn, newest)
        assert runs.last_revision(conn) == before
    record(two_moves, report("d2-a"))
    with two_moves.reading() as conn:
        assert list(runs.changed_after(conn, before, limit=9)) == [before + 1]
