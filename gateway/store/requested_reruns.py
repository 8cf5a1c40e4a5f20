"""Execute again what somebody requests at the provider, by the context of a verdict or by its commit."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy
from sqlalchemy import select

from gateway.errors import Conflict
from gateway.store import reruns
from gateway.store.execution_tables import executions
from gateway.store.run_tables import commit_statuses
from gateway.store.tables import deliveries
from providers.model import Rerun


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether anything is executed again, and what, or why not."""

    is_done: bool
    reason: str


def carry_out(
    conn: sqlalchemy.Connection, connection: str, wanted: Rerun, *, delivery: str | None, now: datetime
) -> Outcome:
    """Execute again what a delivery to a connection wants, once for each id of the provider's deliveries."""
    if delivery is not None and _is_done(conn, connection, delivery):
        return Outcome(is_done=True, reason="")
    done, others = [], []
    for request in _meant(conn, connection, wanted):
        try:
            again = reruns.rerun(conn, request, now=now, key=delivery)
        except Conflict as error:
            others.append(f"{request} is not executed again: {error}")
        else:
            done.append(f"{request} is executed again as {again.id}")
    nothing = [] if done or others else [f"nothing was executed for {wanted.context or wanted.commit}"]
    return Outcome(bool(done), "; ".join([*done, *others, *nothing]))


def _is_done(conn: sqlalchemy.Connection, connection: str, delivery: str) -> bool:
    column = deliveries.c
    of_connection = column.connection == connection, column.provider_delivery_id == delivery
    found = select(column.id).where(*of_connection, column.verdict == "accepted").limit(1)
    return conn.scalar(found) is not None


def _meant(conn: sqlalchemy.Connection, connection: str, wanted: Rerun) -> Sequence[str]:
    """Return the execution that is named, else the newest in the context, or in each of the commit."""
    named = executions.c.id == wanted.execution, executions.c.connection == connection
    if found := list(conn.scalars(select(executions.c.id).where(*named))):
        return found
    newest = (
        select(executions.c.id)
        .join(commit_statuses, commit_statuses.c.execution == executions.c.seq)
        .where(commit_statuses.c.connection == connection, commit_statuses.c.commit == wanted.commit)
        .order_by(commit_statuses.c.context)
    )
    if wanted.context is not None:
        newest = newest.where(commit_statuses.c.context == wanted.context)
    return list(conn.scalars(newest))
