"""What was told last, and what has changed since: results of executions, and the conditions of connections.

A row of `notification_states` is something that is not in order, so what has no row is in order. The cursor
is the revision of the last change of a run that was observed; without a cursor, nothing was observed yet.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy
from sqlalchemy import Row, Select, delete, func, select, update

from gateway.store import notifications, runs
from gateway.store.bulk_sql import upsert_rows
from gateway.store.execution_tables import executions
from gateway.store.notification_tables import notification_states, unexecuted
from gateway.store.rows import from_row
from gateway.store.run_tables import runs as run_rows
from gateway.store.tables import connections, identities, ref_updates

What = Literal["run", "webhook-silent", "remote-refuses", "dead-letters"]
"""What a state is about; a `run` has failed."""

MAX_RESULTS = 500
"""How many results are observed at once."""

_MAX_REASON = 1000
_CURSOR = "cursor"
_SUCCEEDED = ("succeeded",)
# A cancelled run neither fails nor shows that anything works again.
_FAILED = ("failed", "rejected", "lost")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a request ended. `trigger` is None if the whole ref update failed.

    `position` orders the results of a ref. `execution` is its id, None if there never was one.
    """

    connection: str
    connection_name: str
    project: str
    trigger: str | None
    ref: str
    name: str
    commit: str | None
    delivery: str
    position: int
    state: str
    reason: str | None
    execution: str | None = None

    @property
    def is_success(self) -> bool:
        """Return whether the run succeeded."""
        return self.state in _SUCCEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Something that is not in order since then.

    `position` is that of the last failed result, or the number of dead letters.
    """

    key: str
    what: What
    connection: str | None
    position: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What has happened after `cursor`. `seen` are the numbers of the unexecuted requests among `results`."""

    cursor: int
    next_cursor: int
    results: Sequence[Result]
    seen: Sequence[int]
    states: Mapping[str, State]

    @property
    def is_news(self) -> bool:
        """Return whether anything has happened to executions."""
        return bool(self.seen) or self.next_cursor != self.cursor

    @property
    def is_full(self) -> bool:
        """Return whether there may be more."""
        return len(self.results) >= MAX_RESULTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What to store: the states that begin or change, the keys of those that end, and the notifications."""

    begun: Sequence[State]
    ended: Collection[str]
    bodies: Mapping[str, Sequence[Mapping[str, Any]]]


def key_of(*parts: str | None) -> str:
    """Return the key of a state by what identifies its subject."""
    return hashlib.sha256("\0".join(part or "" for part in parts).encode("utf-8", "replace")).hexdigest()


def run_key(result: Result, trigger: str | None) -> str:
    """Return the key of the runs of a trigger, or of all of a ref, if they fail."""
    return key_of("run", result.connection, trigger, result.ref)


def cursor(conn: sqlalchemy.Connection) -> int | None:
    """Return the revision up to which runs were observed; None before the first time."""
    query = select(notification_states.c.position).where(notification_states.c.key == _CURSOR)
    found: int | None = conn.execute(query).scalar()
    return found


def begin(conn: sqlalchemy.Connection, states: Sequence[State], *, now: datetime) -> None:
    """Take what is the case now as told."""
    conn.execute(delete(unexecuted))
    _store(conn, states)
    upsert_rows(
        conn, notification_states, ("key",), [(_CURSOR, _CURSOR, None, runs.last_revision(conn), now)]
    )


def forget(conn: sqlalchemy.Connection) -> None:
    """Forget all that was observed, because there is no channel any more."""
    conn.execute(delete(notification_states))
    conn.execute(delete(unexecuted))


def observe(conn: sqlalchemy.Connection, after: int) -> Observed:
    """Return what has happened to executions after this revision, and everything that is not in order."""
    newest = runs.last_revision(conn)
    summary = func.substr(run_rows.c.summary, 1, _MAX_REASON).label("summary")
    changed = _results(run_rows.c.state, summary, executions.c.id, run_rows.c.revision)
    changed = changed.join(executions, executions.c.ref_update == ref_updates.c.seq).join(
        run_rows, run_rows.c.execution == executions.c.seq
    )
    changed = changed.add_columns(executions.c.trigger).where(
        run_rows.c.revision > after,
        run_rows.c.revision <= newest,
        run_rows.c.state.in_((*_SUCCEEDED, *_FAILED)),
    )
    rows = conn.execute(changed.order_by(run_rows.c.revision).limit(MAX_RESULTS)).all()
    never = _results(unexecuted.c.seq.label("number"), unexecuted.c.trigger, unexecuted.c.reason)
    never = never.join(unexecuted, unexecuted.c.ref_update == ref_updates.c.seq)
    others = conn.execute(never.order_by(unexecuted.c.seq).limit(MAX_RESULTS)).all()
    return Observed(
        cursor=after,
        next_cursor=rows[-1].revision if len(rows) == MAX_RESULTS else newest,
        results=[
            *(_result(row, state="failed", reason=row.reason, execution=None) for row in others),
            *(_result(row, state=row.state, reason=row.summary, execution=row.id) for row in rows),
        ],
        seen=[row.number for row in others],
        states=all_states(conn),
    )


def all_states(conn: sqlalchemy.Connection) -> dict[str, State]:
    """Return everything that is not in order, by its key."""
    query = select(notification_states).where(notification_states.c.key != _CURSOR)
    return {row.key: from_row(State, row) for row in conn.execute(query)}


def record(conn: sqlalchemy.Connection, observed: Observed, told: Told, *, now: datetime) -> bool:
    """Store what has changed, and the notifications about it, together.

    Return False, and store nothing, if another process has observed it meanwhile.
    """
    mine = notification_states.c.key == _CURSOR, notification_states.c.position == observed.cursor
    moved = conn.execute(
        update(notification_states).where(*mine).values(position=observed.next_cursor, since=now)
    )
    if moved.rowcount != 1:
        return False
    if observed.seen:
        conn.execute(delete(unexecuted).where(unexecuted.c.seq.in_(observed.seen)))
    if told.ended:
        conn.execute(delete(notification_states).where(notification_states.c.key.in_(told.ended)))
    _store(conn, told.begun)
    notifications.add(conn, told.bodies, now=now)
    return True


def refused(conn: sqlalchemy.Connection) -> list[str]:
    """Return the connections whose identity was refused by the provider at its last check."""
    query = select(connections.c.id).join(identities, identities.c.id == connections.c.identity)
    where = identities.c.reason.is_not(None), connections.c.deleted_at.is_(None)
    return list(conn.execute(query.where(*where, connections.c.kind != "source")).scalars())


def _store(conn: sqlalchemy.Connection, states: Iterable[State]) -> None:
    rows = [(state.key, state.what, state.connection, state.position, state.since) for state in states]
    if rows:
        upsert_rows(conn, notification_states, ("key",), rows)


def _results(*columns: Any) -> Select[Any]:
    commit = func.coalesce(ref_updates.c.peeled, ref_updates.c.after)
    return select(
        ref_updates.c.connection,
        connections.c.name.label("connection_name"),
        connections.c.project,
        ref_updates.c.ref,
        ref_updates.c.name,
        commit.label("commit"),
        ref_updates.c.delivery,
        ref_updates.c.seq.label("position"),
        *columns,
    ).select_from(ref_updates.join(connections, connections.c.id == ref_updates.c.connection))


def _result(row: Row[Any], **others: Any) -> Result:
    return from_row(Result, row, **others)
