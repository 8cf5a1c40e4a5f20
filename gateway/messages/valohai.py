"""Notifications of Valohai's channels of the type "webhook", as reports about executions. Pure.

https://docs.valohai.com/automation-overview/triggers/notification-triggers/notification-payload-formats
The payload names Valohai's execution, not the request that it stands for: gateway/store/valohai_runs.py finds
that by commit and step.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from gateway.errors import Invalid
from gateway.messages.execution_status import ReportedState
from gateway.text.escape import storable
from gateway.text.validation import describe, faults

_STATES: Mapping[str, ReportedState] = {
    "created": "accepted",
    "queued": "accepted",
    "started": "running",
    "stopping": "running",
    "complete": "succeeded",
    "completed": "succeeded",
    "error": "failed",
    "crashed": "failed",
    "failed": "failed",
    "stopped": "cancelled",
}
# A Markdown link, as the text has it to the page of the execution.
_LINK = re.compile(r"\((https?://[^\s()<>\"'\\^`{|}]+)\)")
# Uncommitted code that was uploaded by hand.
_AD_HOC = "~"
_Text = Annotated[str, StringConstraints(max_length=2000), AfterValidator(storable)]


class _Data(BaseModel):
    """What a notification says about an execution. Others have other data."""

    model_config = ConfigDict(frozen=True)

    execution: _Text | None = Field(default=None, alias="valohai.execution-id")
    status: _Text = Field(default="", alias="valohai.execution-status")
    step: _Text | None = Field(default=None, alias="valohai.execution-step")
    commit: _Text | None = Field(default=None, alias="valohai.commit-identifier")
    project: _Text | None = Field(default=None, alias="valohai.project-id")
    pipeline: _Text | None = Field(default=None, alias="valohai.pipeline-id")
    task: _Text | None = Field(default=None, alias="valohai.task-id")


class ValohaiNotification(BaseModel):
    """A notification of Valohai, with the fields that are read."""

    model_config = ConfigDict(frozen=True)

    type: _Text = Field(description="what has happened", examples=["execution_completed"])
    project: _Text | None = Field(default=None, description="the UUID of the project")
    title: _Text = Field(default="", description="what has happened, for people")
    body: str = Field(default="", description="the same, with a link to the page of the execution")
    url: str = Field(default="", description="the path of that page")
    data: dict[str, Any] = Field(default_factory=dict, description="what is known of the execution")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValohaiRun:
    """What a notification says about an execution of Valohai: its own id, `commit` and `step`."""

    id: str
    state: ReportedState
    commit: str
    step: str
    project: str | None
    url: str | None
    title: str


def read_notification(body: bytes) -> ValohaiNotification:
    """Return the notification in a body. Raise `Invalid`."""
    try:
        return ValohaiNotification.model_validate_json(body)
    except ValidationError as error:
        raise Invalid.of(faults(error, ValohaiNotification)) from None


def run_of(notification: ValohaiNotification) -> ValohaiRun:
    """Return what a notification says about an execution. Raise `Invalid`, with why it is about none."""
    try:
        data = _Data.model_validate(notification.data)
    except ValidationError as error:
        raise Invalid(f"data.{describe(error, _Data)}") from None
    if not data.execution or not data.step or not data.commit:
        raise Invalid("it is about no execution of a step at a commit")
    if data.pipeline or data.task:
        whole = "pipeline" if data.pipeline else "task"
        raise Invalid(f"the execution is a part of a {whole}, whose end no part decides")
    if data.commit.startswith(_AD_HOC):
        raise Invalid("the execution runs uncommitted code")
    return ValohaiRun(
        id=data.execution,
        state=_state(notification.type, data.status),
        commit=data.commit,
        step=data.step,
        project=data.project or notification.project,
        url=_page(notification, data.execution),
        title=notification.title,
    )


def _state(kind: str, status: str) -> ReportedState:
    """Return the state of an execution; its watchdog notices a failure before its status does."""
    words = [word for word in re.split(r"[^a-z]+", kind.lower()) if word]
    if "watchdog" in words:
        return "failed"
    for word in (status.lower(), *reversed(words)):
        if word in _STATES:
            return _STATES[word]
    raise Invalid("neither its type nor its status is known")


def _page(notification: ValohaiNotification, execution: str) -> str | None:
    """Return the URL of the page of the execution, which only the text has in full."""
    return next((link for link in _LINK.findall(notification.body) if execution in link), None)
