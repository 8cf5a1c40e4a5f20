"""Cancel executions: withdraw a request that waits, or tell the runners that have it to stop."""

from datetime import datetime
from typing import Any

import sqlalchemy
from sqlalchemy import select, update

from gateway.errors import Conflict
from gateway.messages.execution_states import ExecutionState
from gateway.store import cancel_events, commit_statuses, executions
from gateway.store.execution_tables import executions as execution_table
from gateway.store.executions import StoredRequest

_WITHDRAWN = {"state": "dropped", "reason": "an operator has cancelled it"}

_WHY_NOT: dict[ExecutionState, str] = {
    "succeeded": "the execution has ended: it succeeded",
    "failed": "the execution has ended: it failed",
    "rejected": "the execution has ended: its runner rejected it",
    "superseded": "a later commit has superseded the execution: it was not published",
    "undeliverable": "the broker refuses the execution: it was not published",
    "dropped": "an operator has dropped the execution: it was not published",
}


def cancel(conn: sqlalchemy.Connection, request_id: str, *, now: datetime) -> StoredRequest:
    """Withdraw a pending request, or tell runners to stop its execution. Raise `NotFound` or `Conflict`.

    The execution of a request that was published goes on until its runner reports the end. A repetition
    changes nothing.
    """
    mine = execution_table.c.id == request_id
    # Verdicts are locked before requests.
    commit_statuses.touch(conn, select(execution_table.c.seq).where(mine))
    # So that the relay records no confirm meanwhile.
    conn.execute(select(execution_table.c.seq).where(mine).with_for_update(key_share=True))
    stored = executions.get(conn, request_id)
    state = stored.shown_state
    if state in _WHY_NOT:
        raise Conflict(_WHY_NOT[state])
    if state == "cancelled" or stored.cancel_requested_at is not None:
        return stored
    cancelled: dict[str, Any] = {"cancel_requested_at": now}
    if stored.state == "pending":
        cancelled |= _WITHDRAWN
    conn.execute(update(execution_table).where(mine).values(cancelled))
    # Also of an earlier order: the request waits because it was republished, or its confirm is not recorded.
    if stored.run is not None or stored.published_at is not None:
        cancel_events.add(conn, [request_id], now=now)
    return executions.get(conn, request_id)
