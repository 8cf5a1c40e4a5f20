"""Which verdicts a settled ref update leads to, and how they are shown."""

from dataclasses import replace
from typing import Any, get_args

import pytest

from gateway.messages.execution_states import ExecutionState, Run, RunState
from gateway.provider_apis.statuses import Annotation
from gateway.store.commit_statuses import Expected
from gateway.store.executions import StoredRequest
from gateway.store.status_tasks import Verdict
from gateway.store.work_queue import PendingUpdate, Settlement
from gateway.worker.verdicts import expected, status_of
from testing import records
from testing.records import NOW, A, B, C

CONNECTION = records.made()
UPDATE = PendingUpdate(
    seq=1,
    connection="c1",
    delivery="d1",
    ref="refs/heads/main",
    kind="branch",
    name="main",
    before=A,
    after=B,
    action="update",
    generation=1,
    pusher="ada",
    repository={},
    received_at=NOW,
)
PULL_REQUEST = {"number": "7", "source": "topic", "target": "main", "from_fork": False}
STORED = StoredRequest(
    **{name: getattr(records.request("r1"), name) for name in ("id", "connection", "delivery", "project")},
    **{name: getattr(records.request("r1"), name) for name in ("trigger", "target", "subject", "body")},
    seq=1,
    ref_update=1,
    planned_at=NOW,
)
VERDICT = Verdict(
    commit=B,
    context="pushgate/train",
    ref="refs/heads/main",
    delivery="d1",
    pull_request=None,
    execution=None,
    outcome=None,
    reason=None,
    file=None,
    line=None,
)


def of(verdicts: list[dict[str, Any]], state: Any = "planned", **changes: Any) -> list[Expected]:
    """Return the verdicts of a settlement."""
    update = replace(UPDATE, **{name: changes.pop(name) for name in list(changes) if hasattr(UPDATE, name)})
    end = Settlement(update=update, state=state, reason="too large", verdicts=verdicts, **changes)
    return list(expected(CONNECTION, end))


def test_each_request_has_the_context_of_its_trigger() -> None:
    """At the commit of an annotated tag, and at the source branch of a pull request."""
    request = records.request("r1", trigger="train")
    verdicts = [{"trigger": "train", "matched": True, "reason": "", "failure": None}]
    (found,) = of(verdicts, requests=(request,), peeled=C, pull_request=PULL_REQUEST)
    assert found == Expected(
        commit=C,
        context="pushgate/train",
        ref="refs/heads/topic",
        delivery="d1",
        pull_request=7,
        request="r1",
    )


@pytest.mark.parametrize(
    ("failure", "file", "line"),
    [
        ("valohai.yaml, line 12, column 3: mapping values are not allowed", "valohai.yaml", 12),
        ("valohai.yaml has no step train; its steps: test", "valohai.yaml", 1),
        ("the requests of the triggers before it exceed 8 bytes together", None, None),
    ],
)
def test_a_trigger_without_a_request_is_an_error_at_its_place(
    failure: str, file: str | None, line: int | None
) -> None:
    """The line of the manifest, or its first one."""
    verdicts = [{"trigger": "train", "matched": True, "reason": "", "failure": failure}]
    (found,) = of(verdicts, "failed")
    assert (found.context, found.outcome, found.reason) == ("pushgate/train", "error", failure)
    assert (found.file, found.line) == (file, line)


def test_a_commit_that_cannot_be_fetched_has_a_context_of_its_own() -> None:
    """No trigger was evaluated."""
    (found,) = of([], "failed")
    assert (found.context, found.outcome, found.reason) == ("pushgate", "error", "too large")
    assert of([]) == []
    assert of([], "failed", after=None) == []


def test_a_required_trigger_that_the_commit_does_not_match_is_skipped() -> None:
    """Another that does not match has no verdict."""
    verdicts = [
        {"trigger": "train", "matched": False, "reason": "no changed path matches a", "skipped": True},
        {"trigger": "test", "matched": False, "reason": "branch main does not match b", "skipped": False},
        {"trigger": "old", "matched": False, "reason": "stored by an earlier version"},
    ]
    (found,) = of(verdicts)
    assert (found.context, found.outcome) == ("pushgate/train", "skipped")
    assert status_of(replace(VERDICT, outcome="skipped", reason=found.reason), base_url="").state == "skipped"


def test_every_state_of_an_execution_has_a_verdict() -> None:
    """The page is that of the delivery; only what goes on is not an end."""
    going_on = {"pending": "waiting", "published": "waiting", "accepted": "waiting", "running": "running"}
    for state in get_args(ExecutionState):
        run = Run(state=state, sequence=1, reported_at=NOW) if state in get_args(RunState) else None
        execution = replace(STORED, run=run) if run is not None else replace(STORED, state=state)
        status = status_of(replace(VERDICT, execution=execution), base_url="https://gate.example")
        assert (status.state in {"waiting", "running"}) == (state in going_on)
        assert status.state == going_on.get(state, status.state)
        assert (status.url, status.execution) == ("https://gate.example/deliveries/d1", "r1")
        assert status.description


def test_a_summary_is_shown_whole_and_by_its_first_line() -> None:
    """A heading without its mark."""
    run = Run(state="succeeded", sequence=1, reported_at=NOW, summary="\n## accuracy 0.98\n\nmore\n")
    status = status_of(replace(VERDICT, execution=replace(STORED, run=run)), base_url="")
    assert status.description == "succeeded: accuracy 0.98"
    assert status.summary == run.summary


def test_an_error_is_annotated_at_its_line() -> None:
    """With the reason."""
    wrong = replace(VERDICT, outcome="error", reason="a tab", file="valohai.yaml", line=3)
    status = status_of(wrong, base_url="")
    assert status.state == "error"
    assert status.annotations == (Annotation(path="valohai.yaml", line=3, message="a tab"),)
