"""The verdicts on commits that the providers show: what is to be shown, in what context.

A row is one context of one commit, such as pushgate/train. It refers to the newest execution there, so the
newest state is all that is ever sent. Whatever changes an execution's state makes its row due; the sender
(`gateway.store.status_tasks`) compares the verdict with what it sent last.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy
from sqlalchemy import Select, bindparam, func, select, update

from gateway.store.bulk_sql import among, upsert_rows
from gateway.store.execution_tables import executions
from gateway.store.run_tables import commit_statuses
from gateway.store.tables import ref_updates
from gateway.text.escape import storable

FETCH_CONTEXT = "pushgate"
"""The context of commits that could not be fetched: no trigger was evaluated."""

CHANGED = datetime(2000, 1, 1, tzinfo=UTC)
"""The due time of verdicts that have changed: when a limit delays some, first verdicts wait for these."""

_CHANGED: dict[str, Any] = {"due_at": CHANGED, "attempts": 0}
_NUMBERS = select(executions.c.id, executions.c.seq).where(
    executions.c.id.in_(bindparam("ids", expanding=True))
)
_RERUN = (
    select(
        executions.c.seq,
        executions.c.connection,
        executions.c.delivery,
        executions.c.trigger,
        func.coalesce(ref_updates.c.peeled, ref_updates.c.after).label("commit"),
    )
    .join(ref_updates, ref_updates.c.seq == executions.c.ref_update)
    .where(executions.c.id == bindparam("its_id"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a ref update leads to in one context of its commit.

    With `request`, the id of an execution request, the verdict is that of the execution; otherwise it is
    `outcome`, because of `reason`. `file` and `line` say where the commit is wrong.
    """

    commit: str
    context: str
    ref: str
    delivery: str
    pull_request: int | None = None
    request: str | None = None
    outcome: Literal["error", "skipped"] | None = None
    reason: str | None = None
    file: str | None = None
    line: int | None = None


def expect(
    conn: sqlalchemy.Connection, connection: str, expected: Sequence[Expected], *, now: datetime
) -> None:
    """Store the verdicts of a ref update, in place of earlier ones in the same contexts.

    A skipped trigger leaves the verdict of an execution that another ref with the commit has led to.
    """
    if any(one.outcome == "skipped" for one in expected):
        known = _with_executions(conn, connection, {one.commit for one in expected})
        expected = [
            one for one in expected if one.outcome != "skipped" or (one.commit, one.context) not in known
        ]
    if not expected:
        return
    ids = [one.request for one in expected if one.request is not None]
    numbers = {row.id: row.seq for row in conn.execute(_NUMBERS, {"ids": ids})} if ids else {}
    rows = [
        (
            connection,
            one.commit,
            one.context,
            one.ref,
            one.pull_request,
            one.delivery,
            None if one.request is None else numbers[one.request],
            one.outcome,
            None if one.reason is None else storable(one.reason),
            one.file,
            one.line,
            now,
            0,
        )
        for one in expected
    ]
    upsert_rows(conn, commit_statuses, ("connection", "commit", "context"), rows)


def _with_executions(
    conn: sqlalchemy.Connection, connection: str, commits: Collection[str]
) -> set[tuple[str, str]]:
    """Return the commits and contexts whose verdict is that of an execution."""
    table = commit_statuses
    mine = table.c.connection == connection, table.c.commit.in_(commits), table.c.execution.is_not(None)
    return {(row.commit, row.context) for row in conn.execute(select(table).where(*mine))}


def context_of(trigger: str) -> str:
    """Return the context of a trigger: the same for every commit, so that providers can require it."""
    return f"{FETCH_CONTEXT}/{trigger}"


def show_rerun(conn: sqlalchemy.Connection, execution: str) -> None:
    """Show a re-run in place of the execution that it runs again, if the connection shows verdicts."""
    [rerun] = conn.execute(_RERUN, {"its_id": execution})
    mine = (
        commit_statuses.c.connection == rerun.connection,
        commit_statuses.c.commit == rerun.commit,
        commit_statuses.c.context == context_of(rerun.trigger),
    )
    shown = {"execution": rerun.seq, "delivery": rerun.delivery, "outcome": None, **_CHANGED}
    conn.execute(update(commit_statuses).where(*mine).values(shown))


def end_fetch_failure(conn: sqlalchemy.Connection, connection: str, commit: str) -> None:
    """Replace the verdict that a commit could not be fetched, if there is one."""
    of_commit = commit_statuses.c.connection == connection, commit_statuses.c.commit == commit
    failed = *of_commit, commit_statuses.c.context == FETCH_CONTEXT, commit_statuses.c.outcome == "error"
    fetched = {"outcome": "succeeded", "reason": "the commit was fetched", **_CHANGED}
    conn.execute(update(commit_statuses).where(*failed).values(fetched))


def touch(conn: sqlalchemy.Connection, numbers: Collection[int] | Select[Any]) -> None:
    """Make the verdicts of executions due, by the numbers of the executions, because they have changed."""
    column = commit_statuses.c.execution
    theirs = column.in_(numbers) if isinstance(numbers, Select) else among(conn, column, numbers)
    conn.execute(update(commit_statuses).where(theirs).values(_CHANGED))
