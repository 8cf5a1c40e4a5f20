"""The outbox of verdicts: the rows of `gateway.store.commit_statuses` that are due, for the sender."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import and_, case, func, select, update

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, SettingError
from gateway.store import connections, executions, identities, status_webhooks
from gateway.store.commit_statuses import CHANGED
from gateway.store.connections import Connection
from gateway.store.due_tasks import DueTasks
from gateway.store.executions import StoredRequest
from gateway.store.identities import Unsealed
from gateway.store.rows import from_row
from gateway.store.run_tables import commit_statuses
from gateway.store.status_webhooks import StatusReceiver
from gateway.store.tables import connections as connection_rows

MAX_DUE_AHEAD = timedelta(days=1)
"""No verdict or lease is due later; a later time was set by a wrong clock."""

SEPARATOR = "|"
"""In what describes a sent verdict: behind the provider's word for its state."""

_AFTER_CHANGED = timedelta(milliseconds=1)
_TASKS = DueTasks(commit_statuses, MAX_DUE_AHEAD, ("connection", "commit", "context"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be shown in a context of a commit: see `Expected`. `execution` is the newest there."""

    commit: str
    context: str
    ref: str
    delivery: str
    pull_request: int | None
    execution: StoredRequest | None
    outcome: str | None
    reason: str | None
    file: str | None
    line: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A verdict that is due and was claimed until `due_at`, with what its API requests need.

    `sent` describes the last one that the provider has accepted or refused for good, and `memory` what its
    module must know of it. A `receiver` takes the place of the provider, which needs `identity`. Without
    both, `obstacle` is why nothing can be sent.
    """

    verdict: Verdict
    connection: Connection
    due_at: datetime
    attempts: int
    sent: str | None
    memory: Mapping[str, Any]
    identity: Unsealed | None = None
    receiver: StatusReceiver | None = None
    obstacle: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SentStatus:
    """What the provider has of a verdict. `problem` is why the last attempt failed, if it did.

    `shown` is the state that the provider has accepted, in its words. With `is_due`, another attempt follows.
    """

    context: str
    commit: str
    shown: str | None
    problem: str | None
    tried_at: datetime | None
    is_due: bool


def is_due(conn: sqlalchemy.Connection, *, now: datetime) -> bool:
    """Return whether a verdict is due. It waits for no writer."""
    return _TASKS.is_due(conn, now=now)


def claim(
    conn: sqlalchemy.Connection,
    keyring: Keyring,
    *,
    without: Collection[str],
    now: datetime,
    until: datetime,
) -> Claimed | None:
    """Claim a due verdict, except of the connections in `without`; None if no verdict is due."""
    row = _TASKS.claim(conn, commit_statuses.c.connection.not_in(without), now=now, until=until)
    if row is None:
        return None
    connection = connections.get_any(conn, row.connection)
    found = [] if row.execution is None else executions.numbered(conn, [row.execution])
    verdict = from_row(Verdict, row, execution=found[0] if found else None)
    claimed = Claimed(
        verdict=verdict,
        connection=connection,
        due_at=until,
        attempts=row.attempts,
        sent=row.sent,
        memory=row.memory,
    )
    try:
        return _with_credentials(conn, keyring, claimed)
    except (NotFound, SettingError) as error:
        return replace(claimed, obstacle=str(error))


def _with_credentials(conn: sqlalchemy.Connection, keyring: Keyring, claimed: Claimed) -> Claimed:
    """Return a claimed verdict with what signs its requests. Raise `NotFound` or `SettingError`."""
    connection = claimed.connection
    if connection.has_status_webhook:
        return replace(claimed, receiver=status_webhooks.of(conn, keyring, connection.id))
    if connection.identity is None:
        return replace(claimed, obstacle="the connection has no identity any more")
    return replace(claimed, identity=identities.unseal(conn, keyring, connection.identity))


def record_sent(
    conn: sqlalchemy.Connection, claimed: Claimed, sent: str, memory: Mapping[str, Any], *, now: datetime
) -> None:
    """Record that the provider has the verdict."""
    _record(conn, claimed, sent=sent, memory=dict(memory), problem=None, tried_at=now)
    _end(conn, claimed, due_at=None, attempts=0)


def record_unchanged(conn: sqlalchemy.Connection, claimed: Claimed) -> None:
    """Record that the provider has the verdict since an earlier attempt."""
    _end(conn, claimed, due_at=None, attempts=0)


def record_refused(
    conn: sqlalchemy.Connection, claimed: Claimed, sent: str | None, problem: str, *, now: datetime
) -> None:
    """Record that the provider refuses the verdict for good: only another verdict is sent."""
    _record(conn, claimed, sent=sent, problem=problem, tried_at=now)
    _end(conn, claimed, due_at=None, attempts=0)


def postpone(
    conn: sqlalchemy.Connection,
    claimed: Claimed,
    problem: str,
    *,
    next_at: datetime,
    others_at: datetime,
    now: datetime,
) -> None:
    """Record why an attempt failed, and make the next one due later, and the others of the identity too."""
    _record(conn, claimed, problem=problem, tried_at=now)
    _end(conn, claimed, due_at=next_at, attempts=claimed.attempts + 1)
    if claimed.identity is None:
        return
    of_identity = select(connection_rows.c.id).where(
        connection_rows.c.identity == claimed.identity.identity.id
    )
    due_at = commit_statuses.c.due_at
    # What has changed stays before first verdicts.
    later = case((due_at == CHANGED, others_at), else_=others_at + _AFTER_CHANGED)
    waiting = due_at <= now, commit_statuses.c.connection.in_(of_identity)
    conn.execute(update(commit_statuses).where(*waiting).values(due_at=later))


def give_back(conn: sqlalchemy.Connection, claimed: Claimed, *, now: datetime) -> None:
    """Make a claimed verdict due again, unless it has ended."""
    _end(conn, claimed, due_at=now)


def of_deliveries(conn: sqlalchemy.Connection, delivery_ids: Collection[str]) -> dict[str, list[SentStatus]]:
    """Return what the provider has of the verdicts of these deliveries, in the order of their contexts."""
    query = select(commit_statuses).where(commit_statuses.c.delivery.in_(delivery_ids))
    found: dict[str, list[SentStatus]] = {}
    for row in conn.execute(query.order_by(commit_statuses.c.context, commit_statuses.c.commit)):
        is_due = row.due_at is not None
        has_accepted = row.sent is not None and (row.problem is None or is_due)
        shown = row.sent.partition(SEPARATOR)[0] if has_accepted else None
        status = from_row(SentStatus, row, is_due=is_due, shown=shown)
        found.setdefault(row.delivery, []).append(status)
    return found


def problems(conn: sqlalchemy.Connection, connection_ids: Collection[str]) -> dict[str, str]:
    """Return why the last attempt of each connection failed, of those whose last attempt failed."""
    table = commit_statuses
    newest = (
        select(table.c.connection, func.max(table.c.tried_at).label("tried_at"))
        .where(table.c.connection.in_(connection_ids))
        .group_by(table.c.connection)
        .subquery()
    )
    is_newest = and_(table.c.connection == newest.c.connection, table.c.tried_at == newest.c.tried_at)
    query = select(table.c.connection, table.c.problem).join(newest, is_newest)
    return {row.connection: row.problem for row in conn.execute(query) if row.problem is not None}


def _mine(claimed: Claimed) -> tuple[str, str, str]:
    return claimed.connection.id, claimed.verdict.commit, claimed.verdict.context


def _record(conn: sqlalchemy.Connection, claimed: Claimed, **values: object) -> None:
    table = commit_statuses
    connection, commit, context = _mine(claimed)
    mine = table.c.connection == connection, table.c.commit == commit, table.c.context == context
    conn.execute(update(table).where(*mine).values(**values))


def _end(conn: sqlalchemy.Connection, claimed: Claimed, **values: object) -> None:
    _TASKS.end(conn, *_mine(claimed), claimed_until=claimed.due_at, **values)
