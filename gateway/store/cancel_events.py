"""The messages that tell runners to stop executions. They wait in the outbox of events."""

from collections.abc import Collection
from datetime import datetime

import sqlalchemy
from sqlalchemy import bindparam, select

from gateway.messages.execution_cancelled import ExecutionCancelled, cancel_id
from gateway.messages.names import EXECUTION_CANCELLED
from gateway.store import events
from gateway.store.events import NewEvent
from gateway.store.execution_tables import executions

_CANCELLED = select(executions).where(
    executions.c.id.in_(bindparam("ids", expanding=True)), executions.c.cancel_requested_at.is_not(None)
)


def add(conn: sqlalchemy.Connection, ids: Collection[str], *, now: datetime) -> None:
    """Add the messages about those of these executions that an operator has cancelled.

    Call it once the requests were published, so that no runner receives such a message before its request.
    """
    new = []
    for row in conn.execute(_CANCELLED, {"ids": list(ids)}):
        message = ExecutionCancelled(
            id=cancel_id(row.id, row.redrives),
            execution=row.id,
            redrive=row.redrives,
            project=row.project,
            connection=row.connection,
            delivery=row.delivery,
            trigger=row.trigger,
            requested_at=row.cancel_requested_at,
        )
        event = NewEvent(
            id=message.id,
            connection=row.connection,
            delivery=row.delivery,
            name=EXECUTION_CANCELLED,
            project=row.project,
            subject=row.subject,
            body=message.model_dump_json().encode(),
        )
        new.append(event)
    events.add(conn, new, now=now)
