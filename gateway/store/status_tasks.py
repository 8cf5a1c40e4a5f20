"""The outbox of verdicts: the rows of `gateway.store.commit_statuses` that are due, for the sender."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, or_, select, update

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, SettingError
from gateway.store import connections, executions, identities, status_webhooks
from gateway.store.bulk_sql import among
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

_RECENT = timedelta(days=3)
# The due time of a verdict that two processes have sent.
_AGAIN = CHANGED - timedelta(seconds=1)
_DONE: Mapping[str, Any] = {"due_at": None, "attempts": 0}
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
    """A verdict that was due and is claimed until `due_at`, with what its API requests need.

    `sent` describes the last one that the provider has accepted or refused for good, and `memory` what its
    module must know of it. A `receiver` takes the place of the provider, which needs `identity`. Without
    both, `obstacle` is why nothing can be sent.
    """

    verdict: Verdict
    connection: Connection
    due_at: datetime
    due_since: datetime
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Except:
    """The verdicts that are not to be sent now, although they are due.

    `hosts` are those of the connections' clone URLs, `receivers` the origins of webhooks' URLs.
    """

    connections: Collection[str] = ()
    identities: Collection[str] = ()
    hosts: Collection[str] = ()
    receivers: Collection[str] = ()

    def conditions(self) -> Iterator[ColumnElement[bool]]:
        """Yield the conditions that the other verdicts fulfil."""
        its_connection = commit_statuses.c.connection
        if self.connections:
            yield its_connection.not_in(self.connections)
        provider = connection_rows.c.status_webhook.is_(None)
        webhook = connection_rows.c.status_webhook
        paused = [(webhook == one) | webhook.startswith(f"{one}/", autoescape=True) for one in self.receivers]
        if self.identities:
            paused.append(provider & connection_rows.c.identity.in_(self.identities))
        if self.hosts:
            paused.append(provider & connection_rows.c.host.in_(self.hosts))
        if paused:
            yield its_connection.not_in(select(connection_rows.c.id).where(or_(*paused)))


_NOTHING = Except()


def is_due(conn: sqlalchemy.Connection, *, now: datetime, but: Except = _NOTHING) -> bool:
    """Return whether a verdict is due. It waits for no writer."""
    return _TASKS.is_due(conn, *but.conditions(), now=now)


def claim(
    conn: sqlalchemy.Connection,
    keyring: Keyring,
    *,
    now: datetime,
    until: datetime,
    but: Except = _NOTHING,
) -> Claimed | None:
    """Claim a due verdict; None if no verdict is due."""
    row = _TASKS.claim(conn, *but.conditions(), now=now, until=until)
    if row is None:
        return None
    connection = connections.get_any(conn, row.connection)
    found = [] if row.execution is None else executions.numbered(conn, [row.execution])
    verdict = from_row(Verdict, row, execution=found[0] if found else None)
    claimed = Claimed(
        verdict=verdict,
        connection=connection,
        due_at=until,
        due_since=row.due_at,
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
    _end(
        conn,
        claimed,
        {"sent": sent, "memory": dict(memory), "problem": None, "tried_at": now},
        _DONE,
        now=now,
    )


def record_unchanged(conn: sqlalchemy.Connection, claimed: Claimed) -> None:
    """Record that the provider has the verdict since an earlier attempt."""
    _TASKS.end(conn, *_mine(claimed), claimed_until=claimed.due_at, **_DONE)


def record_refused(
    conn: sqlalchemy.Connection, claimed: Claimed, sent: str | None, problem: str, *, now: datetime
) -> None:
    """Record that the provider refuses the verdict for good: only another verdict is sent."""
    _end(conn, claimed, {"sent": sent, "problem": problem, "tried_at": now}, _DONE, now=now)


def postpone(
    conn: sqlalchemy.Connection, claimed: Claimed, problem: str, *, next_at: datetime, now: datetime
) -> None:
    """Record why an attempt failed, and make the next one due later."""
    later = {"due_at": next_at, "attempts": claimed.attempts + 1}
    _end(conn, claimed, {"problem": problem, "tried_at": now}, later, now=now)


def hold(conn: sqlalchemy.Connection, claimed: Claimed, problem: str, *, now: datetime) -> None:
    """Record that a limit prevents an attempt, which does not count. The verdict keeps its place."""
    _end(conn, claimed, {"problem": problem, "tried_at": now}, {"due_at": claimed.due_since}, now=now)


def give_back(conn: sqlalchemy.Connection, claimed: Claimed, *, now: datetime) -> None:
    """Make a claimed verdict due again, unless it has ended."""
    _TASKS.end(conn, *_mine(claimed), claimed_until=claimed.due_at, due_at=now)


def retry_refused(
    conn: sqlalchemy.Connection, *, connection: str | None = None, identity: str | None = None, now: datetime
) -> None:
    """Send recently refused verdicts again, after a change of a connection or an identity.

    Of an execution that has ended, no other verdict may follow: it would look unfinished.
    """
    its_id = (
        connection_rows.c.id == connection if identity is None else connection_rows.c.identity == identity
    )
    changed = commit_statuses.c.connection.in_(select(connection_rows.c.id).where(its_id))
    is_refused = commit_statuses.c.problem.is_not(None), commit_statuses.c.due_at.is_(None)
    recent = commit_statuses.c.tried_at > now - _RECENT
    again = {"sent": None, "due_at": CHANGED, "attempts": 0}
    conn.execute(update(commit_statuses).where(changed, *is_refused, recent).values(again))


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
    # One index lookup for each connection, however many verdicts it has.
    newest = (
        select(table.c.problem)
        .where(table.c.connection == connection_rows.c.id, table.c.tried_at.is_not(None))
        .order_by(table.c.tried_at.desc())
        .limit(1)
        .scalar_subquery()
    )
    query = select(connection_rows.c.id, newest).where(among(conn, connection_rows.c.id, connection_ids))
    return {connection: problem for connection, problem in conn.execute(query) if problem is not None}


def _mine(claimed: Claimed) -> tuple[str, str, str]:
    return claimed.connection.id, claimed.verdict.commit, claimed.verdict.context


def _end(
    conn: sqlalchemy.Connection,
    claimed: Claimed,
    result: Mapping[str, Any],
    following: Mapping[str, Any],
    *,
    now: datetime,
) -> None:
    """Record the result of an attempt, and what follows, unless the verdict has changed meanwhile.

    If another process, which leads now, has claimed the changed verdict, nobody can say whose request the
    provider received last: the verdict is sent once more.
    """
    if _TASKS.end(conn, *_mine(claimed), claimed_until=claimed.due_at, **result, **following):
        return
    table = commit_statuses
    mine = _TASKS.has_key(*_mine(claimed))
    is_claimed = table.c.due_at.is_(None) | (table.c.due_at > now)
    again = {"sent": None, "due_at": _AGAIN, "attempts": 0}
    if conn.execute(update(table).where(mine, is_claimed).values(again)).rowcount == 0:
        conn.execute(update(table).where(mine, table.c.due_at != _AGAIN).values(**result))
