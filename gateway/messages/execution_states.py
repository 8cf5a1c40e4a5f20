"""The states of an execution, what may follow what, and what a report changes. Pure.

Two facts make up the state that people see. The outbox has its own: whether the request was published. What
runners report is a `Run`. A run, if there is one, is shown; otherwise the state of the outbox is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    # To build its models takes 0.15 s, and the command line needs none.
    from gateway.messages.execution_status import ExecutionStatus, ReportedState

OutboxState = Literal["pending", "published", "superseded", "undeliverable", "dropped"]
"""`superseded`: a later commit of the ref replaced the request before it was published; `undeliverable`: the
broker refuses it permanently; `dropped`: an operator withdrew it before it was published. One that was
withdrawn because it was cancelled is shown as `cancelled`, and what may follow is what follows `dropped`."""

RunState = Literal["accepted", "running", "succeeded", "failed", "cancelled", "rejected", "lost"]
"""What runners report; `lost` is Pushgate's conclusion from their silence."""

ExecutionState = Literal[
    "pending",
    "published",
    "accepted",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "rejected",
    "lost",
    "superseded",
    "undeliverable",
    "dropped",
]
"""The state that people see."""

_ENDS: tuple[ExecutionState, ...] = ("succeeded", "failed", "cancelled", "rejected")
_REPORTS: tuple[ExecutionState, ...] = ("accepted", "running", *_ENDS)

# A report can arrive in every state of the outbox: before the broker's confirm is recorded, and, because a
# request that is being sent may be withdrawn at this moment, also after that.
NEXT: Mapping[ExecutionState, tuple[ExecutionState, ...]] = {
    "pending": ("published", "superseded", "undeliverable", "dropped", *_REPORTS),
    "published": ("pending", *_REPORTS, "lost"),
    "superseded": ("pending", "published", *_REPORTS),
    "undeliverable": ("pending", "dropped", *_REPORTS),
    "dropped": ("pending", "published", *_REPORTS),
    "accepted": ("running", *_ENDS, "lost", "pending"),
    "running": (*_ENDS, "lost", "pending"),
    # Silence proves nothing: whoever reports again is believed.
    "lost": (*_REPORTS, "pending"),
    "succeeded": ("pending",),
    "failed": ("pending",),
    "cancelled": ("pending",),
    "rejected": ("pending",),
}
"""Which states may follow each state. `pending` follows where an operator republishes or replays."""

MAX_LOST_AFTER_HOURS = 8760
"""The longest silence that may be configured before an execution counts as lost: a year."""

FINAL = frozenset(_ENDS)
"""The states that no report changes."""

NO_REPORT = -1
"""The sequence of a run about which nothing was reported: any report is later."""

_TIMES: "Mapping[ReportedState, str]" = {
    "accepted": "accepted_at",
    "running": "started_at",
    **dict.fromkeys(("succeeded", "failed", "cancelled", "rejected"), "ended_at"),
}
# What a later report replaces, if it has it.
_CONTENTS = ("url", "log_url", "summary", "metrics", "outputs", "runner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What runners have reported about an execution.

    `sequence` is that of the report that counts, `NO_REPORT` if there is none: nobody has accepted the
    request. `reported_at` is when Pushgate received that report, and `lost_at` when it last gave the run up
    as lost; the other times are the runner's, each None if a later report came first. `metrics` and `outputs`
    are JSON values.
    """

    state: RunState
    sequence: int
    reported_at: datetime
    accepted_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    lost_at: datetime | None = None
    url: str | None = None
    log_url: str | None = None
    summary: str | None = None
    metrics: dict[str, float] | None = None
    outputs: list[dict[str, Any]] | None = None
    runner: str | None = None


def silenced(run: Run | None, *, now: datetime) -> Run:
    """Return the run of an execution about which nothing was reported for too long; None: nothing at all."""
    if run is None:
        return Run(state="lost", sequence=NO_REPORT, reported_at=now, lost_at=now)
    return run if run.state in FINAL else replace(run, state="lost", lost_at=now)


def why_lost(run: Run) -> str | None:
    """Return why a run counts as lost; None if it does not."""
    if run.state != "lost":
        return None
    if run.sequence == NO_REPORT:
        return "no runner had accepted it in time"
    return f"its runner has not reported since {run.reported_at:%Y-%m-%d %H:%M} UTC"


def shown(outbox: OutboxState, run: RunState | None, *, is_cancelled: bool = False) -> ExecutionState:
    """Return the state that people see; `is_cancelled` says that an operator has cancelled the execution.

    A published request is not `cancelled` before its runner reports it.
    """
    if run is not None:
        return run
    return "cancelled" if outbox == "dropped" and is_cancelled else outbox


def advance(run: Run | None, report: "ExecutionStatus", *, now: datetime) -> Run:
    """Return the run after a report; the same object if the report changes nothing.

    A report changes nothing if its `sequence` is lower than that of the run, if it repeats its state with an
    equal `sequence`, or if its state may not follow. What it leaves out stays as an earlier report has it.
    """
    if run is None:
        return _with(Run(state=report.state, sequence=report.sequence, reported_at=now), report, now=now)
    return _with(run, report, now=now) if _counts(run, report) else run


def _counts(run: Run, report: "ExecutionStatus") -> bool:
    """Return whether a report changes the run."""
    if run.state in FINAL or report.sequence < run.sequence:
        return False
    if report.state == run.state:
        return report.sequence > run.sequence
    is_repeated = run.state == "lost" and report.sequence == run.sequence
    return report.state in NEXT[run.state] and (report.state in FINAL or not is_repeated)


def _with(run: Run, report: "ExecutionStatus", *, now: datetime) -> Run:
    """Return a run with what a report says."""
    time = _TIMES[report.state]
    given = {name: value for name, value in report.contents().items() if value is not None}
    return replace(
        run,
        state=report.state,
        sequence=report.sequence,
        reported_at=now,
        **{time: getattr(run, time) or report.at, **given},
    )
