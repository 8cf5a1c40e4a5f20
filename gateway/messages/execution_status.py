"""The status report: what runners send about an execution. This is a contract with other teams.

Fields may be added, but never become required, and none is removed; a breaking change is a new type, `….v2`.
The JSON Schema of this model is in docs/execution-status.schema.json, and the gateway serves it at
/schemas/execution-status.json.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from gateway.errors import Invalid
from gateway.messages.names import (
    EXECUTION_STATUS,
    EXECUTION_STATUS_SCHEMA,
    EXECUTION_STATUS_VERSION,
    message_type,
)
from gateway.messages.schema import schema_of
from gateway.text.escape import storable
from gateway.text.validation import faults

STATUS_TYPE = message_type(EXECUTION_STATUS)

ReportedState = Literal["accepted", "running", "succeeded", "failed", "cancelled", "rejected"]
"""`accepted`: a runner has taken the request over; `rejected`: no runner can execute it."""

MAX_SEQUENCE = 2**53 - 1
"""The largest integer that every JSON parser reads exactly."""

MAX_SUMMARY = 65_536
"""How many characters a summary may have."""

MAX_REPORT_BYTES = 128 * 1024
"""How long the body of a report may be: a page of the API shows up to 200 of them."""

_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


def _plausible(moment: datetime) -> datetime:
    # The databases cannot convert every moment that JSON can name.
    if not _EARLIEST <= moment < _LATEST:
        raise ValueError("must be between the years 2000 and 2200")
    return moment.astimezone(UTC)


_Moment = Annotated[AwareDatetime, AfterValidator(_plausible)]
_Id = Annotated[str, StringConstraints(min_length=1, max_length=100), AfterValidator(storable)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(storable)]
_Text = Annotated[str, StringConstraints(max_length=MAX_SUMMARY), AfterValidator(storable)]
# Only pages: the dashboard links to them. No control characters, blanks, quotes or brackets.
_Url = Annotated[
    str, StringConstraints(pattern=r'^https?://[^\u0000-\u0020\u007f"<>\\^`{|}]+$', max_length=2000)
]
_WORDS = {"string_pattern_mismatch": "must be an http:// or https:// URL without blanks"}
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Received(BaseModel):
    """A part of a report. Unknown fields are ignored: runners may be newer than the gateway."""

    model_config = ConfigDict(frozen=True)


class RunOutput(_Received):
    """A file that a run has made."""

    name: _Name = Field(description="the name of the output or of the file")
    url: Annotated[str, StringConstraints(max_length=2000), AfterValidator(storable)] | None = Field(
        default=None, description="where it is, such as s3://… or datum://…; it is shown, and never fetched"
    )


class ExecutionStatus(_Received):
    """What became of an execution request, as its runner reports it."""

    model_config = ConfigDict(frozen=True, title="ExecutionStatus")

    id: _Id = Field(description="the id of the execution request")
    state: ReportedState = Field(
        description="accepted: a runner has taken the request over; running: it executes; then one of"
        " succeeded, failed, cancelled, rejected, which never changes. rejected: no runner can execute it"
    )
    at: _Moment = Field(description="when the state was reached")
    sequence: int = Field(
        ge=0,
        le=MAX_SEQUENCE,
        strict=True,
        description="higher in each later report about this execution, such as a counter, or the time in"
        " milliseconds; a report with a lower number than an earlier one is ignored",
    )
    url: _Url | None = Field(default=None, description="a web page about the run, for people")
    log_url: _Url | None = Field(default=None, description="a web page with its log, for people")
    summary: _Text | None = Field(default=None, description="what came out, for people")
    metrics: dict[_Name, _Number] | None = Field(
        default=None, max_length=100, description="measured numbers by name, such as accuracy"
    )
    outputs: tuple[RunOutput, ...] | None = Field(
        default=None, max_length=200, description="the files that the run has made"
    )
    runner: _Name | None = Field(default=None, description="the runner and its version, for people")

    def contents(self) -> dict[str, Any]:
        """Return what the report says beside the state, as JSON values by field; None for what it omits."""
        return self.model_dump(mode="json", exclude={"id", "state", "at", "sequence"})


class StatusEvent(_Received):
    """A report as a CloudEvent in structured mode."""

    specversion: Literal["1.0"] = Field(description="the version of CloudEvents")
    type: Literal["dev.pushgate.execution.status.v1"] = Field(description="the type of the event")
    data: ExecutionStatus = Field(description="the report")


def read_report(body: bytes, *, is_structured: bool) -> ExecutionStatus:
    """Return the report in a body: the report itself, or a CloudEvent in structured mode. Raise `Invalid`.

    The error names the wrong field, but never its value.
    """
    if len(body) > MAX_REPORT_BYTES:
        raise Invalid(f"the report has {len(body)} bytes: at most {MAX_REPORT_BYTES} are allowed")
    model = StatusEvent if is_structured else ExecutionStatus
    try:
        found = model.model_validate_json(body)
    except ValidationError as error:
        raise Invalid.of(faults(error, model, words=_WORDS)) from None
    return found.data if isinstance(found, StatusEvent) else found


def status_schema() -> dict[str, Any]:
    """Return the JSON Schema of a report."""
    return schema_of(
        ExecutionStatus, name=EXECUTION_STATUS_SCHEMA, version=EXECUTION_STATUS_VERSION, mode="validation"
    )
