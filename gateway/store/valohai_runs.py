"""Which execution request a notification of Valohai is about, and what it reports.

Valohai does not know the id of the request. It is that of the connection, of the same commit and step, whose
run has the page of Valohai's execution, if a runner has reported it; else the only one without a page that
has not ended. Whatever cannot be told is kept with its reason: a wrong verdict is worse than none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy
from sqlalchemy import or_, select

from gateway.errors import Invalid
from gateway.messages.execution_states import FINAL, Run, RunState
from gateway.messages.execution_status import ExecutionStatus
from gateway.messages.valohai import ValohaiNotification, ValohaiRun, run_of
from gateway.store import connections, executions, platforms, runs
from gateway.store.database import Lock, lock
from gateway.store.execution_tables import executions as table
from gateway.store.executions import StoredRequest
from gateway.store.platforms import Platform
from gateway.store.runs import EndedRun, Unknown
from gateway.store.tables import ref_updates
from gateway.text.escape import storable

_MAX_CANDIDATES = 20
_MAX_ID = 100
_RUNNER = "Valohai"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The execution that a notification is about, and its state after it; else the `reason` why none is.

    `ended` is the run that it has ended, if it did.
    """

    execution: str | None = None
    state: RunState | None = None
    is_change: bool = False
    ended: EndedRun | None = None
    reason: str | None = None


def record(
    conn: sqlalchemy.Connection, connection: str, notification: ValohaiNotification, *, now: datetime
) -> Recorded:
    """Record what a notification reports about an execution of a connection. Raise `NotFound`.

    What is about none is kept with its reason, by the id of Valohai's execution.
    """
    connections.get(conn, connection)
    platform = platforms.of(conn, [connection]).get(connection)
    try:
        run = run_of(notification)
        _check_project(run, platform)
        stored = _chosen(run, _candidates(conn, connection, run))
    except Invalid as error:
        named = notification.data.get("valohai.execution-id")
        about = storable(named)[:_MAX_ID] if isinstance(named, str) and named else notification.type
        _keep(conn, about, notification, reason=str(error), now=now)
        return Recorded(reason=str(error))
    [outcome] = runs.record(conn, [_report(stored, run, now=now)], now=now)
    return Recorded(
        execution=stored.id, state=outcome.state, is_change=outcome.is_change, ended=outcome.ended
    )


def _check_project(run: ValohaiRun, platform: Platform | None) -> None:
    if platform is not None and run.project not in {None, platform.project}:
        raise Invalid("it is about another project than that of the connection's platform")


def _candidates(conn: sqlalchemy.Connection, connection: str, run: ValohaiRun) -> Sequence[StoredRequest]:
    """Return the requests of a connection for a commit and a step, the newest first."""
    found = (
        select(table.c.id)
        .join(ref_updates, ref_updates.c.seq == table.c.ref_update)
        .where(
            or_(ref_updates.c.after == run.commit, ref_updates.c.peeled == run.commit),
            table.c.connection == connection,
            table.c.target == run.step,
        )
        .order_by(table.c.seq.desc())
        .limit(_MAX_CANDIDATES)
    )
    stored = [executions.get(conn, name) for name in conn.execute(found).scalars().all()]
    # A pipeline or a task may have the name of a step.
    return [one for one in stored if json.loads(one.body)["execution"]["kind"] == "step"]


def _chosen(run: ValohaiRun, candidates: Sequence[StoredRequest]) -> StoredRequest:
    """Return the request that a run of Valohai is about. Raise `Invalid` if it cannot be told."""
    if not candidates:
        raise Invalid(f"the connection has no execution of the step {run.step} at commit {run.commit}")
    for stored in candidates:
        if stored.run is not None and run.id in (stored.run.url or ""):
            return stored
    free = [one for one in candidates if one.run is None or _is_free(one.run)]
    if len(free) == 1:
        return free[0]
    if not free:
        raise Invalid(
            f"every execution of the step {run.step} at commit {run.commit} has ended, or has another page"
        )
    names = " and ".join(one.id for one in free)
    raise Invalid(f"it may be about each of {names}: let a runner report the page of the execution")


def _is_free(run: Run) -> bool:
    return run.state not in FINAL and run.url is None


def _report(stored: StoredRequest, run: ValohaiRun, *, now: datetime) -> ExecutionStatus:
    """Return a notification as a report. It has no number, so the state alone decides whether it counts."""
    known = stored.run
    sequence = 0 if known is None else max(0, known.sequence)
    if known is not None and known.state == "lost":
        sequence += 1
    return ExecutionStatus(
        id=stored.id,
        state=run.state,
        at=now,
        sequence=sequence,
        url=run.url,
        summary=(run.title or None) if known is None or known.summary is None else None,
        runner=_RUNNER if known is None or known.runner is None else None,
    )


def _keep(
    conn: sqlalchemy.Connection, about: str, notification: ValohaiNotification, *, reason: str, now: datetime
) -> None:
    lock(conn, Lock.RUNS)
    runs.keep_unknown(conn, [Unknown(about, notification.type, _RUNNER)], reason=reason, now=now)
