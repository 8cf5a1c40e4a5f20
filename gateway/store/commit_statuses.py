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
from gateway.store.run_tables import commit_statuses, runs
from gateway.store.tables import ref_updates
from gateway.text.escape import storable

FETCH_CONTEXT = "pushgate"
"""The context of commits that could not be fetched: no trigger was evaluated."""

CHANGED = datetime(2000, 1, 1, tzinfo=UTC)
"""The due time of verdicts that have changed: when a limit delays some, first verdicts wait for these."""

_OPEN = ("accepted", "running")
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

    The verdict of a later execution stays, such as of a re-run when the delivery of the first is replayed.
    A skipped trigger leaves the verdict of any execution, which another ref with the commit has led to.
    """
    if not expected:
        return
    ids = [one.request for one in expected if one.request is not None]
    numbers = {row.id: row.seq for row in conn.execute(_NUMBERS, {"ids": ids})} if ids else {}
    shown = _with_executions(conn, connection, {one.commit for one in expected})

    def is_newest(one: Expected) -> bool:
        number = shown.get((one.commit, one.context))
        if number is None or one.outcome == "error":
            return True
        return one.request is not None and number <= numbers[one.request]

    expected = [one for one in expected if is_newest(one)]
    if not expected:
        return
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
) -> dict[tuple[str, str], int]:
    """Return the numbers of the executions that verdicts refer to, by commit and context."""
    table = commit_statuses
    query = select(table.c.commit, table.c.context, table.c.execution)
    mine = table.c.connection == connection, table.c.commit.in_(commits), table.c.execution.is_not(None)
    return {(commit, context): number for commit, context, number in conn.execute(query.where(*mine))}


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
    nothing = dict.fromkeys(("outcome", "reason", "file", "line"))
    shown = {"execution": rerun.seq, "delivery": rerun.delivery, **nothing, **_CHANGED}
    conn.execute(update(commit_statuses).where(*mine).values(shown))


def end_failures(
    conn: sqlalchemy.Connection, connection: str, *, commit: str, delivery: str, contexts: Collection[str]
) -> None:
    """Replace the verdicts that an earlier attempt to plan a commit has left in other contexts.

    The commit is fetched now, and the triggers that a failure was about may be gone since.
    """
    is_failed = (
        commit_statuses.c.connection == connection,
        commit_statuses.c.commit == commit,
        commit_statuses.c.outcome == "error",
        commit_statuses.c.context.not_in(contexts),
    )
    is_of_fetch = commit_statuses.c.context == FETCH_CONTEXT
    fetched = {"outcome": "succeeded", "reason": "the commit was fetched", **_CHANGED}
    conn.execute(update(commit_statuses).where(*is_failed, is_of_fetch).values(fetched))
    skipped = {"outcome": "skipped", "reason": "its trigger no longer matches", "file": None, "line": None}
    # Another push of the commit, such as of a tag, matches other triggers.
    same = commit_statuses.c.delivery == delivery
    conn.execute(update(commit_statuses).where(*is_failed, same).values({**skipped, **_CHANGED}))


def touch(conn: sqlalchemy.Connection, numbers: Collection[int] | Select[Any]) -> None:
    """Make the verdicts of executions due, by the numbers of the executions, because they have changed."""
    column = commit_statuses.c.execution
    theirs = column.in_(numbers) if isinstance(numbers, Select) else among(conn, column, numbers)
    conn.execute(update(commit_statuses).where(theirs).values(_CHANGED))


def end_unfinished(conn: sqlalchemy.Connection, deliveries: Collection[str]) -> set[str]:
    """End the verdicts of deliveries that are to be deleted, as far as their executions have not ended.

    Return the deliveries some of whose verdicts are due: their rows are still needed.
    """
    theirs = commit_statuses.c.delivery.in_(deliveries)
    is_open = executions.c.state == "published", runs.c.state.is_(None) | runs.c.state.in_(_OPEN)
    unfinished = (
        select(executions.c.seq)
        .outerjoin(runs, runs.c.execution == executions.c.seq)
        .where(executions.c.delivery.in_(deliveries), *is_open)
    )
    ended = {
        "execution": None,
        "outcome": "error",
        "reason": "nothing was reported about its end",
        **_CHANGED,
    }
    conn.execute(
        update(commit_statuses).where(theirs, commit_statuses.c.execution.in_(unfinished)).values(ended)
    )
    due = select(commit_statuses.c.delivery).where(theirs, commit_statuses.c.due_at.is_not(None))
    return set(conn.execute(due).scalars())
