"""The states of an execution: the table, and what reports in any order come to."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages.execution_states import (
    FINAL,
    NEXT,
    ExecutionState,
    OutboxState,
    Run,
    RunState,
    advance,
    shown,
    silenced,
    why_lost,
)
from gateway.messages.execution_status import ExecutionStatus, ReportedState

NOW = datetime(2026, 5, 4, 13, 0, tzinfo=UTC)
ENDS: tuple[ReportedState, ...] = ("succeeded", "failed", "cancelled", "rejected")


def report(state: ReportedState, sequence: int, **more: object) -> ExecutionStatus:
    """Return a report whose time follows from its sequence."""
    at = datetime(2026, 5, 4, 12, tzinfo=UTC) + timedelta(seconds=sequence)
    return ExecutionStatus.model_validate({"id": "e", "state": state, "at": at, "sequence": sequence, **more})


def after(*reports: ExecutionStatus, run: Run | None = None) -> Run | None:
    """Return the run after these reports."""
    for each in reports:
        run = advance(run, each, now=NOW)
    return run


def lost(sequence: int = 2) -> Run:
    """Return a run whose runner has fallen silent."""
    return Run(state="lost", sequence=sequence, reported_at=NOW)


def test_the_table_has_a_row_for_each_state_and_names_only_states() -> None:
    """Every state can be reached from `pending`."""
    states = set(get_args(ExecutionState))
    assert set(NEXT) == states
    reached: list[ExecutionState] = ["pending"]
    for state in reached:
        reached += [following for following in NEXT[state] if following not in reached]
    assert len(reached) == len(states)
    assert states == set(get_args(OutboxState)) | set(get_args(RunState))
    assert set(ENDS) == FINAL


@pytest.mark.parametrize("outbox", get_args(OutboxState))
def test_a_run_is_shown_and_without_a_run_the_outbox(outbox: OutboxState) -> None:
    """A runner that reports has the request, whatever the outbox has recorded of it."""
    assert shown(outbox, None) == outbox
    for run in get_args(RunState):
        assert shown(outbox, run) == run
        assert run in NEXT[outbox] or run == "lost"


@pytest.mark.parametrize("state", get_args(ReportedState))
def test_the_first_report_may_be_any(state: ReportedState) -> None:
    """Earlier reports may be late or lost."""
    first = report(state, 7, url="https://ml.example/7", metrics={"a": 1}, outputs=[{"name": "model"}])
    run = after(first)
    assert run is not None
    assert (run.state, run.sequence, run.reported_at, run.url) == (state, 7, NOW, first.url)
    assert (run.metrics, run.outputs) == ({"a": 1.0}, [{"name": "model", "url": None}])
    moments = {
        "accepted": run.accepted_at,
        "running": run.started_at,
        **dict.fromkeys(ENDS, run.ended_at),
    }
    assert moments[state] == first.at
    assert [run.accepted_at, run.started_at, run.ended_at].count(None) == 2


@pytest.mark.parametrize("state", get_args(RunState))
@pytest.mark.parametrize("reported", get_args(ReportedState))
def test_a_later_report_changes_a_state_only_as_the_table_says(
    state: RunState, reported: ReportedState
) -> None:
    """A state that may not follow changes nothing at all."""
    run = Run(state=state, sequence=3, reported_at=NOW)
    changed = advance(run, report(reported, 4), now=NOW)
    if reported in NEXT[state]:
        assert changed.state == reported
    elif reported == state and state not in FINAL:
        assert (changed.state, changed.sequence) == (state, 4)
    else:
        assert changed is run


@pytest.mark.parametrize("state", get_args(RunState))
@pytest.mark.parametrize("reported", get_args(ReportedState))
def test_a_report_with_a_lower_sequence_is_ignored(state: RunState, reported: ReportedState) -> None:
    """It was overtaken."""
    run = Run(state=state, sequence=3, reported_at=NOW)
    assert advance(run, report(reported, 2), now=NOW) is run


@pytest.mark.parametrize("reported", get_args(ReportedState))
def test_a_runner_that_does_not_count_still_moves_forward(reported: ReportedState) -> None:
    """With equal sequences, the table alone decides."""
    run = Run(state="accepted", sequence=0, reported_at=NOW)
    assert advance(run, report(reported, 0), now=NOW).state == reported


def test_a_lost_run_comes_back_with_a_later_report_or_its_end() -> None:
    """A repetition of what was known before the silence does not bring it back."""
    assert after(report("running", 2), run=lost()) == lost()
    assert after(report("accepted", 2), run=lost()) == lost()
    for found in (after(report("running", 3), run=lost()), after(report("failed", 2), run=lost())):
        assert found is not None
        assert found.state in {"running", "failed"}


@pytest.mark.parametrize("state", get_args(RunState))
def test_silence_ends_no_run_that_has_ended(state: RunState) -> None:
    """What was reported stays; without any report, the first one is believed."""
    run = Run(state=state, sequence=3, reported_at=NOW, runner="r")
    later = NOW + timedelta(days=1)
    lost = silenced(run, now=later)
    if state in FINAL:
        assert lost is run
        assert why_lost(run) is None
    else:
        assert lost == Run(state="lost", sequence=3, reported_at=NOW, lost_at=later, runner="r")
        assert why_lost(lost) == "its runner has not reported since 2026-05-04 13:00 UTC"


@pytest.mark.parametrize("reported", get_args(ReportedState))
def test_a_request_that_nobody_accepted_in_time_may_still_run(reported: ReportedState) -> None:
    """Whatever its runner counts from."""
    lost = silenced(None, now=NOW)
    assert (lost.state, why_lost(lost)) == ("lost", "no runner had accepted it in time")
    assert advance(lost, report(reported, 0), now=NOW).state == reported


def test_a_progress_report_replaces_what_it_has_and_leaves_the_rest() -> None:
    """The time of a state stays that of its first report."""
    first = report("running", 2, url="https://ml.example/1", runner="r", metrics={"a": 1, "b": 2})
    later = report("running", 3, summary="half", metrics={"a": 3})
    run = after(first, later)
    assert run is not None
    assert run.started_at == first.at
    assert (run.sequence, run.url, run.runner, run.summary) == (3, first.url, "r", "half")
    assert run.metrics == {"a": 3.0}


@st.composite
def histories(draw: st.DrawFn) -> list[ExecutionStatus]:
    """Return the reports of a well-behaved runner: their numbers rise, and the end is the last."""
    states: list[ReportedState] = ["accepted"] * draw(st.integers(0, 2))
    states += ["running"] * draw(st.integers(0, 3))
    states += [draw(st.sampled_from(ENDS))] if draw(st.booleans()) or not states else []
    steps = draw(st.lists(st.integers(1, 5), min_size=len(states), max_size=len(states)))
    numbers = [sum(steps[: number + 1]) for number in range(len(states))]
    return [report(state, number) for state, number in zip(states, numbers, strict=True)]


@given(data=st.data(), history=histories())
def test_reports_in_any_order_repeated_and_dropped_come_to_the_highest(
    data: st.DataObject, history: list[ExecutionStatus]
) -> None:
    """The end is the state of the highest report that arrived, with its time."""
    repeated = data.draw(st.lists(st.sampled_from(history), min_size=1, max_size=12))
    arrived = data.draw(st.permutations(repeated))
    highest = max(arrived, key=lambda each: each.sequence)
    run = after(*arrived)
    assert run is not None
    assert (run.state, run.sequence) == (highest.state, highest.sequence)
    if highest.state in FINAL:
        assert run.ended_at == highest.at
    assert after(*arrived, run=run) == run


@given(arrived=st.lists(st.builds(report, st.sampled_from(get_args(ReportedState)), st.integers(0, 6))))
def test_no_reports_whatever_they_are_move_a_run_backwards(arrived: list[ExecutionStatus]) -> None:
    """Also of a runner that counts wrongly: each change is one that the table has."""
    run: Run | None = None
    for each in arrived:
        changed = advance(run, each, now=NOW)
        if run is not None:
            assert changed.state == run.state or changed.state in NEXT[run.state]
            assert changed.sequence >= run.sequence
        assert advance(changed, each, now=NOW) is changed
        run = changed
