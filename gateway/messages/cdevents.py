"""CDEvents that are read as reports: those about runs of tasks and of pipelines. Pure.

https://cdevents.dev/: of versions 0.3 to 0.5. A body is the whole event in both modes of CloudEvents, so the
type in it counts.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import Invalid
from gateway.messages.execution_status import (
    MAX_REPORT_BYTES,
    MAX_SUMMARY,
    ExecutionStatus,
    ReportedState,
    read_report,
)
from gateway.text.validation import faults

_PREFIX = "dev.cdevents."
_TYPE = re.compile(r"dev\.cdevents\.(?:pipelinerun\.(queued)|(?:pipeline|task)run\.(started|finished))\.\d.*")
_STATES: Mapping[str, ReportedState] = {"queued": "accepted", "started": "running"}
_OUTCOMES: Mapping[str, ReportedState] = {
    "success": "succeeded",
    "failure": "failed",
    "error": "failed",
    "cancel": "cancelled",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_PAGE = re.compile(r"https?://")
_MAX_RUNNER = 200


class _Received(BaseModel):
    """A part of an event. Other fields are ignored, as later versions may have more."""

    model_config = ConfigDict(frozen=True)


class _Context(_Received):
    type: str
    timestamp: AwareDatetime
    source: str = ""


class _Content(_Received):
    """What became of a run. Before version 0.5, `uri` was named `url`."""

    outcome: Literal["success", "failure", "error", "cancel"] | None = None
    errors: str | None = None
    uri: str | None = None
    url: str | None = None


class _Subject(_Received):
    id: str
    content: _Content = _Content()


class _CdEvent(_Received):
    context: _Context
    subject: _Subject
    custom_data: Any = Field(default=None, alias="customData")


def read_any_report(body: bytes, *, is_structured: bool, execution: str | None = None) -> ExecutionStatus:
    """Return the report in a body: Pushgate's own, or a CDEvent. Raise `Invalid`.

    A CDEvent is about the execution that its `customData.pushgate.execution` names, else about the given one,
    else about the one whose id is that of its subject, or the last part of it.
    """
    try:
        return read_report(body, is_structured=is_structured)
    except Invalid:
        event = _cdevent(body, is_structured=is_structured)
        if event is None:
            raise
    try:
        return _report(_CdEvent.model_validate(event), execution)
    except ValidationError as error:
        raise Invalid.of(faults(error, _CdEvent)) from None


def _cdevent(body: bytes, *, is_structured: bool) -> Any:
    """Return the CDEvent in a body, as far as its type tells; None if it is something else."""
    if len(body) > MAX_REPORT_BYTES:
        return None
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return None
    event = given.get("data") if is_structured and isinstance(given, dict) else given
    context = event.get("context") if isinstance(event, dict) else None
    named = context.get("type") if isinstance(context, dict) else None
    return event if isinstance(named, str) and named.startswith(_PREFIX) else None


def _report(event: _CdEvent, execution: str | None) -> ExecutionStatus:
    """Return the report that an event makes; its time in milliseconds is the sequence."""
    context, content = event.context, event.subject.content
    found = _TYPE.fullmatch(context.type)
    if found is None:
        raise Invalid(
            "context.type: it is none of pipelinerun.queued, pipelinerun.started, pipelinerun.finished,"
            " taskrun.started and taskrun.finished"
        )
    state = _STATES.get(found[1] or found[2]) or _OUTCOMES.get(content.outcome or "")
    if state is None:
        raise Invalid("subject.content.outcome: Field required")
    page = content.uri or content.url or ""
    return ExecutionStatus(
        id=_named(event.custom_data) or execution or event.subject.id.rpartition("/")[2],
        state=state,
        at=context.timestamp,
        sequence=(context.timestamp - _EPOCH) // _MILLISECOND,
        # Some systems have only paths.
        url=page if _PAGE.match(page) else None,
        summary=None if content.errors is None else content.errors[:MAX_SUMMARY],
        runner=context.source[:_MAX_RUNNER] or None,
    )


def _named(custom_data: Any) -> str | None:
    """Return the execution that custom data names, which may be anything."""
    ours = custom_data.get("pushgate") if isinstance(custom_data, dict) else None
    named = ours.get("execution") if isinstance(ours, dict) else None
    return named if isinstance(named, str) and named else None
