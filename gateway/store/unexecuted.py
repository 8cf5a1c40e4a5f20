"""Requests that no runner will ever execute, kept until the observer of notifications has seen them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import insert, literal, select

from gateway.store.execution_tables import executions
from gateway.store.notification_tables import unexecuted
from gateway.text.escape import storable


def add_unplanned(
    conn: sqlalchemy.Connection,
    ref_update: int,
    *,
    state: str,
    reason: str,
    verdicts: Sequence[Mapping[str, Any]],
    planned: Collection[str],
) -> None:
    """Record the triggers that could not be planned, except those `planned` in part.

    Record the whole ref update if it failed for another reason.
    """
    failures = [
        (one["trigger"], one["failure"])
        for one in verdicts
        if one.get("failure") is not None and one["trigger"] not in planned
    ]
    if not failures and not planned and state == "failed":
        failures = [(None, reason)]
    if failures:
        rows = [
            {"ref_update": ref_update, "trigger": trigger, "reason": storable(why)}
            for trigger, why in failures
        ]
        conn.execute(insert(unexecuted), rows)


def add_undeliverable(conn: sqlalchemy.Connection, reasons: Mapping[str, str]) -> None:
    """Record requests that the broker refuses permanently, and why, by their ids."""
    for request_id, reason in reasons.items():
        found = select(executions.c.ref_update, executions.c.trigger, literal(storable(reason)))
        query = found.where(executions.c.id == request_id)
        conn.execute(insert(unexecuted).from_select(["ref_update", "trigger", "reason"], query))
