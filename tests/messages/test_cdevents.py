"""CDEvents as reports: the specification's own examples, and what other systems make of it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Invalid
from gateway.messages.cdevents import read_any_report
from gateway.messages.execution_status import ExecutionStatus

EXAMPLES = sorted((Path(__file__).parent / "cdevents").glob("*.json"))
STATES = {
    "pipelinerun_queued": "accepted",
    "pipelinerun_started": "running",
    "taskrun_started": "running",
    "pipelinerun_finished": "failed",
    "taskrun_finished": "failed",
}
NONE_OF = "context.type: it is none of pipelinerun.queued"
EXECUTION = "bf02aab5-0d80-55a9-808a-ba51c6818932"


def finished(**changes: Any) -> dict[str, Any]:
    """Return the event of a finished task run; `content` and `context` are added to its own."""
    content = {"taskName": "train", "outcome": "success", **changes.pop("content", {})}
    context = {
        "specversion": "0.5.1",
        "id": "271069a8",
        "source": "/staging/tekton/",
        "type": "dev.cdevents.taskrun.finished.0.3.0",
        "timestamp": "2026-05-04T12:31:40.5Z",
        **changes.pop("context", {}),
    }
    return {"context": context, "subject": {"id": EXECUTION, "content": content}, **changes}


def read(event: Any, execution: str | None = None) -> ExecutionStatus:
    """Read an event in binary mode."""
    return read_any_report(json.dumps(event).encode(), is_structured=False, execution=execution)


def structured(event: Any, **more: Any) -> bytes:
    """Return an event in structured mode, as SDKs send it."""
    context = event["context"]
    named = {name: context[name] for name in ("id", "source", "type")}
    return json.dumps({"specversion": "1.0", **named, "data": event, **more}).encode()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_of_the_specification_are_read(path: Path) -> None:
    """In both modes of CloudEvents."""
    event = json.loads(path.read_text(encoding="utf-8"))
    found = read(event)
    assert found.state == STATES[path.stem.rpartition("-")[0]]
    assert (found.id, found.runner) == ("mySubject123", "/event/source/123")
    assert found.at == datetime(2023, 3, 20, 14, 27, 5, 315384, UTC)
    assert found.sequence == 1679322425315
    assert found.url == "https://www.example.com/mySubject123"
    failed = "Something went wrong\nWith some more details"
    assert found.summary == (failed if found.state == "failed" else None)
    assert read_any_report(structured(event), is_structured=True) == found


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("success", "succeeded"), ("failure", "failed"), ("error", "failed"), ("cancel", "cancelled")],
)
def test_the_outcome_is_the_end(outcome: str, state: str) -> None:
    """The specification has four."""
    assert read(finished(content={"outcome": outcome})).state == state


def test_the_execution_is_the_named_one_else_that_of_the_url_else_the_subject() -> None:
    """A system that cannot choose the ids of its runs reports to the URL of the request."""
    named = finished(customData={"pushgate": {"execution": "e1"}})
    assert read(named).id == "e1"
    assert read(named, "e2").id == "e1"
    assert read(finished(), "e2").id == "e2"
    assert read(finished()).id == EXECUTION
    for subject in (f"namespace/{EXECUTION}", f"/tenant/1/{EXECUTION}"):
        assert (
            read({**finished(), "subject": {"id": subject, "content": {"outcome": "error"}}}).id == EXECUTION
        )


@pytest.mark.parametrize(
    "data", [None, "PGRhdGE+Cg==", [], {"pushgate": "e1"}, {"pushgate": {"execution": 7}}, {"other": {}}]
)
def test_custom_data_of_others_is_ignored(data: Any) -> None:
    """It may be anything."""
    assert read(finished(customData=data)).id == EXECUTION


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"context": {"type": "dev.cdevents.build.finished.0.3.0"}},
            "context.type: it is none of pipelinerun",
        ),
        (
            {"context": {"type": "dev.cdevents.taskrun.queued.0.3.0"}},
            "context.type: it is none of pipelinerun",
        ),
        ({"context": {"timestamp": "yesterday"}}, "context.timestamp: "),
        ({"context": {"timestamp": "0001-01-01T00:00:00Z"}}, "at: must be between the years"),
        ({"content": {"outcome": "great"}}, "subject.content.outcome: Input should be 'success', "),
        ({"content": {"outcome": None}}, "subject.content.outcome: Field required"),
        ({"subject": {"content": {"outcome": "success"}}}, "subject.id: Field required"),
        ({"subject": {"id": "a/", "content": {"outcome": "success"}}}, "id: "),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_field(changes: dict[str, Any], words: str) -> None:
    """In both modes; never with the value."""
    event = finished(**changes)
    for body, is_structured in ((json.dumps(event).encode(), False), (structured(event), True)):
        with pytest.raises(Invalid) as raised:
            read_any_report(body, is_structured=is_structured)
        assert str(raised.value).startswith(words)


def test_a_path_is_no_page_and_long_errors_are_cut() -> None:
    """Tekton has only paths; the dashboard links to pages."""
    found = read(finished(content={"uri": "/apis/tekton.dev/v1beta1/taskruns/7", "errors": "e" * 70_000}))
    assert (found.url, len(found.summary or "")) == (None, 65_536)
    assert read(finished(content={"url": "http://ml.example/7"})).url == "http://ml.example/7"


def test_later_events_have_higher_sequences() -> None:
    """Also across time zones."""
    first = read(finished(context={"timestamp": "2026-05-04T14:31:40.500Z"}))
    later = read(finished(context={"timestamp": "2026-05-04T16:31:40.501+02:00"}))
    assert later.sequence - first.sequence == 1
    assert later.at - first.at == timedelta(milliseconds=1)


def test_reports_and_other_bodies_are_read_as_before() -> None:
    """The reason is about the report, unless the body is a CDEvent."""
    own = {"id": "e", "state": "running", "at": "2026-05-04T12:31:40Z", "sequence": 2}
    assert read(own, "other").id == "e"
    too_long = json.dumps(finished(customData="x" * 140_000)).encode()
    for body in (b"", b"[]", b"null", b'{"context": 1}', b'{"context": {"type": 1}}', b"[" * 9999, too_long):
        for is_structured in (False, True):
            with pytest.raises(Invalid):
                read_any_report(body, is_structured=is_structured)


@given(
    event=st.recursive(
        st.none() | st.text() | st.integers(),
        lambda inner: st.dictionaries(
            st.sampled_from(["context", "subject", "content", "type", "id", "data", "timestamp", "outcome"]),
            inner,
        ),
    )
)
def test_whatever_arrives_is_read_or_refused(event: Any) -> None:
    """Nothing else is raised."""
    typed = {"context": {"type": "dev.cdevents.taskrun.started.0.1.1"}, "subject": event}
    for body in (event, typed, {"type": "x", "data": event}):
        for is_structured in (False, True):
            try:
                read_any_report(json.dumps(body).encode(), is_structured=is_structured)
            except Invalid:
                continue
