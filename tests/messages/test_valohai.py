"""Notifications of Valohai: the sample of its documentation, and the variations that it lists."""

import json
from typing import Any

import pytest

from gateway.errors import Invalid
from gateway.messages.valohai import ValohaiRun, read_notification, run_of

EXECUTION, PROJECT = "0178f482-8686-fb28-8af1-3d36af38079d", "016f3203-4a8c-969e-078c-52ab66947746"
COMMIT = "4d34124453b680daa0ecb881bcf1bd735a3bf99d"
PAGE = f"https://app.valohai.com/p/acme/digits/execution/{EXECUTION}/"


def notification(**changes: Any) -> bytes:
    """Return the body of a notification; `data` is added to its own."""
    data = {
        "valohai.execution-counter": 736,
        "valohai.execution-ctime": "2021-04-21T12:58:18.119973+00:00",
        "valohai.execution-duration": 660.0186445713043,
        "valohai.execution-id": EXECUTION,
        "valohai.execution-status": "complete",
        "valohai.execution-step": "train",
        "valohai.execution-title": None,
        "valohai.project-id": PROJECT,
        "valohai.project-name": "acme/digits",
        "valohai.commit-identifier": COMMIT,
        **changes.pop("data", {}),
    }
    whole = {
        "project": PROJECT,
        "title": "Execution finished: acme/digits/#736 (completed)",
        "type": "execution_completed",
        "body": f"Execution [acme/digits/#736]({PAGE}) (by mona)\nfinished with duration 11:01.",
        "url": f"/p/acme/digits/execution/{EXECUTION}/",
        "data": data,
        **changes,
    }
    return json.dumps(whole).encode()


def read(**changes: Any) -> ValohaiRun:
    """Return what a notification says about an execution."""
    return run_of(read_notification(notification(**changes)))


def test_a_completed_execution_has_succeeded() -> None:
    """The sample of the documentation; the full URL of the page is only in the text."""
    assert read() == ValohaiRun(
        id=EXECUTION,
        state="succeeded",
        commit=COMMIT,
        step="train",
        project=PROJECT,
        url=PAGE,
        title="Execution finished: acme/digits/#736 (completed)",
    )


@pytest.mark.parametrize(
    ("status", "kind", "state"),
    [
        ("created", "execution_created", "accepted"),
        ("queued", "execution_created", "accepted"),
        ("started", "execution_created", "running"),
        ("completed", "execution_completed", "succeeded"),
        ("error", "execution_failed", "failed"),
        ("crashed", "execution_error", "failed"),
        ("stopped", "execution_stopped", "cancelled"),
        ("stopping", "execution_stopped", "running"),
        ("started", "execution_watchdog_failed", "failed"),
        ("", "execution_completed", "succeeded"),
        ("new status", "execution_error", "failed"),
        (None, "execution_stopped", "cancelled"),
    ],
)
def test_the_status_decides_else_the_type(status: str | None, kind: str, state: str) -> None:
    """A watchdog notices that an execution is dead while its status is still `started`."""
    data = {} if status is None else {"valohai.execution-status": status}
    whole = json.loads(notification(type=kind, data=data))
    if status is None:
        del whole["data"]["valohai.execution-status"]
    assert run_of(read_notification(json.dumps(whole).encode())).state == state


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "dataset_version_created", "data": {"valohai.execution-id": None}}, "about no execution"),
        ({"data": {"valohai.execution-step": None}}, "about no execution"),
        ({"data": {"valohai.commit-identifier": ""}}, "about no execution"),
        ({"data": {"valohai.commit-identifier": "~8603a0"}}, "uncommitted code"),
        ({"data": {"valohai.pipeline-id": "7"}}, "part of a pipeline"),
        ({"data": {"valohai.task-id": "7"}}, "part of a task"),
        ({"data": {"valohai.execution-id": 7}}, "data.valohai.execution-id: "),
        ({"type": "execution_moved", "data": {"valohai.execution-status": "x"}}, "neither its type nor"),
    ],
)
def test_what_is_about_no_execution_says_why(changes: dict[str, Any], reason: str) -> None:
    """It is kept, and not refused: Valohai cannot correct it."""
    with pytest.raises(Invalid, match=reason):
        read(**changes)


def test_a_page_is_a_link_to_the_execution() -> None:
    """Other links, such as to the creator, are not; without any there is no page."""
    assert read(body=f"[mona](https://app.valohai.com/u/mona) ran [it]({PAGE})").url == PAGE
    assert read(body="finished").url is None
    assert read(body=f'[it](https://evil.example/"{EXECUTION})').url is None


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"type": 7}', b'{"type": "x", "data": 7}'])
def test_other_bodies_are_refused(body: bytes) -> None:
    """With the field."""
    with pytest.raises(Invalid):
        read_notification(body)
