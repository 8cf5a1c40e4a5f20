"""What runners report about executions: one row for each execution that was reported.

The outbox keeps its own state in `executions`; see gateway/messages/execution_states.py for both.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

import sqlalchemy
from sqlalchemy import ColumnElement, bindparam, delete, exists, func, select, union_all

from gateway.messages.execution_states import FINAL, ExecutionState, Run, RunState, advance
from gateway.messages.execution_status import ExecutionStatus
from gateway.store import commit_statuses, unaccepted
from gateway.store.bulk_sql import among, upsert_rows
from gateway.store.database import Lock, lock
from gateway.store.execution_tables import executions
from gateway.store.rows import from_row
from gateway.store.run_tables import run_revisions, runs, unknown_reports

MAX_UNKNOWN = 200
"""How many ids of unknown executions are kept: the newest."""

_UNKNOWN = "there is no execution with this id: its delivery is older than KEEP_DAYS, or the id is wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a report has changed. `state` is that of the run after it, None if the execution is unknown.

    `cancel_requested_at` is when an operator cancelled the execution. `ended` is the run that the report has
    ended, if it did.
    """

    state: RunState | None
    is_change: bool
    cancel_requested_at: datetime | None = None
    ended: "EndedRun | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run that has ended, with the execution that it belongs to, for its trace."""

    execution: str
    delivery: str
    project: str
    trigger: str
    target: str
    redrives: int
    run: Run


@dataclass(frozen=True, slots=True)
class Unknown:
    """What a report says that is about no execution in the store, by the id that it names."""

    id: str
    state: str
    runner: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownReport:
    """Reports that name an execution which is not in the store. `state` and `runner` are of the latest."""

    execution: str
    state: str
    reason: str
    runner: str | None
    first_at: datetime
    last_at: datetime
    count: int


# Built once: building one takes longer than running it.
_FOUND = select(
    executions.c.id,
    executions.c.seq,
    executions.c.delivery,
    executions.c.project,
    executions.c.trigger,
    executions.c.target,
    executions.c.redrives,
    executions.c.lost_after,
    executions.c.cancel_requested_at,
)
_NAMED = select(unknown_reports).where(unknown_reports.c.execution.in_(bindparam("ids", expanding=True)))
# The greater of both: an older version of Pushgate beside this one gives revisions by the newest row.
_LAST = union_all(select(func.max(runs.c.revision)), select(run_revisions.c.last))
_WITHDRAWN = executions.alias()
_TOO_MANY = delete(unknown_reports).where(
    unknown_reports.c.execution.in_(
        select(unknown_reports.c.execution).order_by(unknown_reports.c.last_at.desc()).offset(MAX_UNKNOWN)
    )
)


def record(
    conn: sqlalchemy.Connection, reports: Sequence[ExecutionStatus], *, now: datetime
) -> list[Outcome]:
    """Record reports in the order given, and return the outcome of each.

    Reports about unknown executions are kept in a bounded record.
    """
    # Two transactions would overwrite each other's rows. The lock is not on the executions, which the relay
    # updates in another order.
    lock(conn, Lock.RUNS)
    found = conn.execute(_FOUND.where(among(conn, executions.c.id, {each.id for each in reports}))).all()
    numbers: dict[str, int] = {row.id: row.seq for row in found}
    rows = {row.id: row for row in found}
    stored = of(conn, numbers.values())
    current, outcomes = dict(stored), []
    for report in reports:
        number = numbers.get(report.id)
        if number is None:
            outcomes.append(Outcome(state=None, is_change=False))
            continue
        before = current.get(number)
        current[number] = after = advance(before, report, now=now)
        outcomes.append(_outcome(rows[report.id], before, after))
    changed = {number: run for number, run in current.items() if run is not stored.get(number)}
    write(conn, changed, {row.seq: row.lost_after for row in found})
    if new := [row for row in found if row.seq not in stored]:
        unaccepted.accept(conn, [row.seq for row in new], {row.project for row in new}, now=now)
    if unknown := [report for report in reports if report.id not in numbers]:
        named = [Unknown(report.id, report.state, report.runner) for report in unknown]
        keep_unknown(conn, named, reason=_UNKNOWN, now=now)
    return outcomes


def _outcome(execution: Any, before: Run | None, after: Run) -> Outcome:
    """Return what a report about an execution, a row of `_FOUND`, has changed."""
    ended = None
    if after is not before and after.state in FINAL:
        ended = EndedRun(
            execution=execution.id,
            delivery=execution.delivery,
            project=execution.project,
            trigger=execution.trigger,
            target=execution.target,
            redrives=execution.redrives,
            run=after,
        )
    return Outcome(
        state=after.state,
        is_change=after is not before,
        cancel_requested_at=execution.cancel_requested_at,
        ended=ended,
    )


def write(
    conn: sqlalchemy.Connection, changed: Mapping[int, Run], lost_after: Mapping[int, int | None]
) -> None:
    """Store changed runs, and the limits of silence of their executions, by the numbers of these.

    The transaction must hold `Lock.RUNS`.
    """
    if changed:
        numbered = enumerate(changed.items(), start=last_revision(conn) + 1)
        rows = [_row(number, run, revision, lost_after[number]) for revision, (number, run) in numbered]
        upsert_rows(conn, runs, ("execution",), rows)
        commit_statuses.touch(conn, list(changed))


def of(conn: sqlalchemy.Connection, numbers: Collection[int]) -> dict[int, Run]:
    """Return the runs of executions, by the numbers of the executions."""
    rows = conn.execute(select(runs).where(among(conn, runs.c.execution, numbers)))
    return {row.execution: from_row(Run, row) for row in rows}


def forget(conn: sqlalchemy.Connection, number: int) -> None:
    """Delete what was reported about an execution, by its number."""
    lock(conn, Lock.RUNS)
    keep_revision(conn)
    conn.execute(delete(runs).where(runs.c.execution == number))
    commit_statuses.touch(conn, [number])
    unaccepted.forget(conn, number)


def keep_revision(conn: sqlalchemy.Connection) -> None:
    """Remember the last revision, before rows are deleted. The transaction must hold `Lock.RUNS`."""
    upsert_rows(conn, run_revisions, ("id",), [(1, last_revision(conn))])


def last_revision(conn: sqlalchemy.Connection) -> int:
    """Return the number of the newest change, 0 if there are none."""
    return max((last for last in conn.execute(_LAST).scalars() if last is not None), default=0)


def changed_after(conn: sqlalchemy.Connection, revision: int, *, limit: int) -> dict[int, int]:
    """Return the numbers of changed executions by the revision of their last change, the oldest first.

    Changes are numbered in the order of their commits, because of the lock in `record`.
    """
    query = select(runs.c.revision, runs.c.execution).where(runs.c.revision > revision)
    rows = conn.execute(query.order_by(runs.c.revision).limit(limit))
    return {row.revision: row.execution for row in rows}


def is_shown_as(state: ExecutionState) -> ColumnElement[bool]:
    """Return the condition on executions that people see in this state."""
    is_unreported = ~exists().where(runs.c.execution == executions.c.seq)
    reported = select(runs.c.execution).where(runs.c.state == state)
    if state == "cancelled":
        its_run = runs.alias()
        withdrawn = (
            select(_WITHDRAWN.c.seq)
            .outerjoin(its_run, its_run.c.execution == _WITHDRAWN.c.seq)
            .where(
                _WITHDRAWN.c.state == "dropped",
                _WITHDRAWN.c.cancel_requested_at.is_not(None),
                its_run.c.execution.is_(None),
            )
        )
        return executions.c.seq.in_(union_all(reported, withdrawn))
    if state in get_args(RunState):
        return executions.c.seq.in_(reported)
    if state == "dropped":
        is_unreported &= executions.c.cancel_requested_at.is_(None)
    return (executions.c.state == state) & is_unreported


def unknown(conn: sqlalchemy.Connection, ids: Collection[str]) -> list[UnknownReport]:
    """Return what is kept of reports about these ids, none of which is an execution's."""
    return [from_row(UnknownReport, row) for row in conn.execute(_NAMED, {"ids": list(ids)})]


def _row(number: int, run: Run, revision: int, lost_after: int | None) -> tuple[Any, ...]:
    """Return the values of a row, in the order of the table's columns."""
    return (
        number,
        run.state,
        run.sequence,
        run.reported_at,
        run.accepted_at,
        run.started_at,
        run.ended_at,
        run.url,
        run.log_url,
        run.summary,
        run.metrics,
        run.outputs,
        run.runner,
        revision,
        run.lost_at,
        lost_after,
    )


def keep_unknown(
    conn: sqlalchemy.Connection, reports: Sequence[Unknown], *, reason: str, now: datetime
) -> None:
    """Count reports that are about no execution in the store, and forget the oldest.

    The transaction must hold `Lock.RUNS`.
    """
    latest = {report.id: report for report in reports}
    before = {each.execution: each for each in unknown(conn, latest)}
    counts, rows = Counter(report.id for report in reports), []
    for name, report in latest.items():
        known = before.get(name)
        first_at, count = (now, 0) if known is None else (known.first_at, known.count)
        rows.append((name, report.state, reason, report.runner, first_at, now, count + counts[name]))
    upsert_rows(conn, unknown_reports, ("execution",), rows)
    conn.execute(_TOO_MANY)
