"""Execute a request again: the same request, published once more, or another one that names it."""

import json
from datetime import datetime, timedelta

import sqlalchemy
from sqlalchemy import select, update

from gateway.errors import Conflict
from gateway.messages.execution_request import rerun_id
from gateway.messages.execution_states import ExecutionState, OutboxState
from gateway.messages.packages import PlannedPackage, package_in, with_package
from gateway.store import commit_statuses, executions, outcomes, packages, runs
from gateway.store.execution_tables import execution_bodies
from gateway.store.execution_tables import executions as execution_table
from gateway.store.executions import NewRequest, StoredRequest, expired_package
from gateway.store.tables import ref_updates

_PENDING = "the execution is pending: it is published as soon as the broker accepts it"

_WHY_NOT_REPUBLISHED: dict[OutboxState, str] = {
    "pending": _PENDING,
    "superseded": "a later commit has superseded the execution, which was never published: republish that of"
    " the later commit, or re-run this one",
    "dropped": "an operator has dropped the execution: replay its delivery to publish it after all, or re-run"
    " it",
}

_WHY_NOT_RUN_AGAIN: dict[ExecutionState, str] = {
    "pending": _PENDING,
    "accepted": "a runner has accepted the execution: wait for its end, or cancel it",
    "running": "the execution is running: wait for its end, or cancel it",
}


def republish(conn: sqlalchemy.Connection, request_id: str, *, now: datetime) -> StoredRequest:
    """Make a request pending again under its id, with a new run. Raise `NotFound` or `Conflict`."""
    stored = executions.get(conn, request_id)
    if stored.state in _WHY_NOT_REPUBLISHED:
        raise Conflict(_WHY_NOT_REPUBLISHED[stored.state])
    body = _body_with_package(conn, stored, now=now)
    if body != stored.body:
        its_body = update(execution_bodies).where(execution_bodies.c.execution == stored.seq)
        conn.execute(its_body.values(body=body))
    runs.forget(conn, stored.seq)
    table = execution_table.c
    again = {
        "state": "pending",
        "reason": None,
        "redrives": table.redrives + 1,
        "republished_at": now,
        "cancel_requested_at": None,
    }
    unchanged = table.id == request_id, table.state == stored.state
    if conn.execute(update(execution_table).where(*unchanged).values(again)).rowcount == 0:
        raise Conflict(_PENDING)
    return executions.get(conn, request_id)


def rerun(
    conn: sqlalchemy.Connection, request_id: str, *, now: datetime, key: str | None = None
) -> StoredRequest:
    """Add a request to the outbox that runs another one again. Raise `NotFound` or `Conflict`.

    It has an id of its own, and names the other. With the same `key`, it is added only once: a repetition
    returns the request that is there. Without a key, each call adds a request. No later commit supersedes it.
    """
    # Held to the end, so that two calls do not count the same, and the delivery is not deleted meanwhile.
    its_update = select(execution_table.c.ref_update).where(execution_table.c.id == request_id)
    locked = select(ref_updates.c.seq).where(ref_updates.c.seq == its_update.scalar_subquery())
    conn.execute(locked.with_for_update(key_share=True))
    stored = executions.get(conn, request_id)
    name = rerun_id(request_id, len(stored.rerun_by) + 1 if key is None else key)
    if name in stored.rerun_by:
        return executions.get(conn, name)
    if stored.shown_state in _WHY_NOT_RUN_AGAIN:
        raise Conflict(_WHY_NOT_RUN_AGAIN[stored.shown_state])
    message = json.loads(_body_with_package(conn, stored, now=now))
    # The URL for reports is the last field: see gateway/publish/status_urls.py.
    message.pop("status_url", None)
    again = {**message, "id": name, "rerun_of": request_id, "status_url": None}
    new = NewRequest(
        id=name,
        connection=stored.connection,
        delivery=stored.delivery,
        project=stored.project,
        trigger=stored.trigger,
        target=stored.target,
        subject=stored.subject,
        body=json.dumps(again, ensure_ascii=False, separators=(",", ":")).encode(),
        lane=stored.lane,
        rerun_of=request_id,
        lost_after=None if stored.lost_after is None else timedelta(seconds=stored.lost_after),
    )
    executions.add(conn, [new], ref_update=stored.ref_update, now=now)
    outcomes.refresh(conn, [stored.delivery])
    commit_statuses.show_rerun(conn, name)
    return executions.get(conn, name)


def _body_with_package(conn: sqlalchemy.Connection, stored: StoredRequest, *, now: datetime) -> bytes:
    """Return the body of a request with a package that is stored, whose time until it expires restarts.

    If its own package has expired, a replay may have built it again. That package has another id if the rules
    of packing have changed, or the connection's `yaml_path`. Raise `Conflict` if the commit has no package.
    """
    planned = package_in(stored.body)
    if planned is None:
        return stored.body
    kept, body = stored.package, stored.body
    if kept is None:
        commit = json.loads(body)["commit"]["id"]
        kept = packages.built_from(
            conn, connection=stored.connection, commit=commit, package_format=planned.format
        )
        if kept is None:
            raise Conflict(expired_package(stored))
        again = PlannedPackage(id=kept.id, format=kept.format, sha256=kept.sha256, size=kept.size)
        body = with_package(body, again.unsigned("", now=now))
    packages.touch(conn, kept.id, kept.format, now=now)
    return body
