"""Deliveries that failed, and that the provider is requested to send again.

Each connection whose webhook is registered at a provider with a log of deliveries has a check: at its due
time, a worker searches the log since the last check. What suggests that a delivery was missed makes it due.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy
from sqlalchemy import ColumnElement, delete, func, insert, literal, or_, select, update

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, SettingError
from gateway.store import connections, identities
from gateway.store.bulk_sql import upsert_rows
from gateway.store.connections import Connection
from gateway.store.database import Lock, lock
from gateway.store.due_tasks import DueTasks
from gateway.store.identities import Unsealed
from gateway.store.ids import delivery_ids_since
from gateway.store.redelivery_tables import redeliveries, redelivery_checks
from gateway.store.rows import from_row
from gateway.store.sources import Scope
from gateway.store.tables import connections as connection_rows
from gateway.store.tables import deliveries, sources, webhook_registrations

EVERY = timedelta(days=1)
"""How often a log is searched without any reason to."""

KEPT = timedelta(days=8)
"""How long it is remembered what was requested: longer than any provider keeps its log."""

_TASKS = DueTasks(redelivery_checks, 2 * EVERY)
_PART = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a check has come: it began at `began_at`, and goes on at the page `cursor`."""

    began_at: datetime
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A check that is due and was claimed until `due_at`, with what its API requests need.

    Without `identity` or `webhook`, `obstacle` is why the log cannot be searched.
    """

    connection: Connection
    due_at: datetime
    since: datetime
    is_urgent: bool
    attempts: int
    progress: Progress | None
    scope: Scope | Literal["repository"]
    webhook: str | None = None
    identity: Unsealed | None = None
    obstacle: str | None = None

    @property
    def is_of_app(self) -> bool:
        """Whether the webhook is a GitHub App's own: see `gateway.store.registrations`."""
        is_app = self.identity is not None and self.identity.identity.kind == "github-app"
        return is_app and self.scope != "repository"


@dataclass(frozen=True, slots=True, kw_only=True)
class Redelivery:
    """A delivery that was requested again: how often, and when last."""

    guid: str
    event: str
    status: str
    requests: int
    requested_at: datetime
    is_given_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is known of the failed deliveries of a connection.

    In the last days, or since a user requested a check, `requested` were requested again, the last at
    `requested_at`; of these, `given_up` have failed each time. `reason` is why the last check failed.
    """

    requested: int
    given_up: int
    requested_at: datetime | None
    checked_at: datetime | None
    reason: str | None


def watch(conn: sqlalchemy.Connection, connection: str, *, may_lack: bool, now: datetime) -> None:
    """Check the log of a connection's webhook from now on, and at once if deliveries may have failed."""
    mine = select(redelivery_checks.c.connection).where(redelivery_checks.c.connection == connection)
    moments = (literal(moment, redelivery_checks.c.since.type) for moment in (now + EVERY, now))
    added = select(literal(connection), *moments).where(~mine.exists())
    conn.execute(insert(redelivery_checks).from_select(["connection", "due_at", "since"], added))
    if may_lack:
        make_due(conn, [connection], at=now)


def forget(conn: sqlalchemy.Connection, connection: str) -> None:
    """End the checks of a connection."""
    for table in (redelivery_checks, redeliveries):
        conn.execute(delete(table).where(table.c.connection == connection))


def make_due(conn: sqlalchemy.Connection, connection_ids: Collection[str], *, at: datetime) -> None:
    """Make the checks of these connections due at a moment, unless they are due earlier."""
    ids = list(connection_ids)
    if len(ids) > 1:
        # Two transactions would lock rows crosswise.
        lock(conn, Lock.REDELIVERIES)
    for start in range(0, len(ids), _PART):
        these = redelivery_checks.c.connection.in_(ids[start : start + _PART])
        conn.execute(_advanced(at).where(these))


def make_all_due(conn: sqlalchemy.Connection, *, at: datetime) -> None:
    """Make all checks due at a moment, unless they are due earlier."""
    lock(conn, Lock.REDELIVERIES)
    conn.execute(_advanced(at))


def request(conn: sqlalchemy.Connection, connection: str, *, since: datetime | None, now: datetime) -> bool:
    """Make a check due now, before others, with all that failed since `since`, also what was given up.

    Return False if there is no log to be searched.
    """
    values: dict[str, object] = {"due_at": now, "is_urgent": True, "attempts": 0, "reason": None}
    mine = redelivery_checks.c.connection == connection
    if conn.execute(update(redelivery_checks).where(mine).values(**values)).rowcount == 0:
        return False
    if since is not None:
        # From its first page on.
        earlier = {"since": since, "began_at": None, "cursor": None}
        conn.execute(
            update(redelivery_checks).where(mine, redelivery_checks.c.since > since).values(**earlier)
        )
    again = {"requests": 0, "is_given_up": False}
    conn.execute(update(redeliveries).where(redeliveries.c.connection == connection).values(**again))
    return True


def is_due(conn: sqlalchemy.Connection, *, now: datetime, without: Collection[str] = ()) -> bool:
    """Return whether a check is due, except with the identities in `without`. It waits for no writer."""
    return _TASKS.is_due(conn, *_without(without), now=now)


def claim(
    conn: sqlalchemy.Connection,
    keyring: Keyring,
    *,
    now: datetime,
    until: datetime,
    without: Collection[str] = (),
) -> Claimed | None:
    """Claim a due check, except with the identities in `without`; None if no check is due."""
    first = redelivery_checks.c.is_urgent.is_(True)
    row = _TASKS.claim(conn, *_without(without), now=now, until=until, first=first)
    if row is None:
        return None
    connection = connections.get_any(conn, row.connection)
    mine = webhook_registrations.c.connection == connection.id
    webhook = conn.execute(select(webhook_registrations.c.webhook).where(mine)).scalar()
    identity, obstacle = None, "the webhook is not registered"
    if webhook is not None:
        identity, obstacle = _identity(conn, keyring, connection)
    progress = Progress(began_at=row.began_at, cursor=row.cursor) if row.began_at else None
    return Claimed(
        connection=connection,
        due_at=until,
        since=row.since,
        is_urgent=row.is_urgent,
        attempts=row.attempts,
        progress=progress,
        scope=conn.execute(select(sources.c.scope).where(sources.c.connection == connection.id)).scalar()
        or "repository",
        webhook=webhook,
        identity=identity,
        obstacle=obstacle,
    )


def _identity(
    conn: sqlalchemy.Connection, keyring: Keyring, connection: Connection
) -> tuple[Unsealed | None, str]:
    """Return the identity of a connection, or the reason why it has none."""
    if connection.identity is None:
        return None, "the connection has no identity: set one"
    try:
        return identities.unseal(conn, keyring, connection.identity), ""
    except (NotFound, SettingError) as error:
        return None, str(error)


def arrived(
    conn: sqlalchemy.Connection, connection: str, guids: Collection[str], *, since: datetime
) -> set[str]:
    """Return which of these ids of the provider have deliveries that were received since a moment.

    Those of a source are stored with the connections of its repositories.
    """
    # Not as bound values: a source may have more connections than a statement may have of those.
    theirs = or_(connection_rows.c.id == connection, connection_rows.c.source == connection)
    found = select(deliveries.c.provider_delivery_id).where(
        deliveries.c.connection.in_(select(connection_rows.c.id).where(theirs)),
        deliveries.c.id >= delivery_ids_since(since),
        deliveries.c.provider_delivery_id.in_(guids),
    )
    return set(conn.execute(found).scalars())


def known(conn: sqlalchemy.Connection, connection: str, guids: Collection[str]) -> Mapping[str, Redelivery]:
    """Return what was requested before of these ids of the provider."""
    mine = redeliveries.c.connection == connection, redeliveries.c.guid.in_(guids)
    rows = conn.execute(select(redeliveries).where(*mine))
    return {row.guid: from_row(Redelivery, row) for row in rows}


def record(conn: sqlalchemy.Connection, connection: str, requested: Redelivery) -> None:
    """Store that a delivery was requested, or given up."""
    upsert_rows(conn, redeliveries, ("connection", "guid"), [(connection, *astuple(requested))])


def interrupt(
    conn: sqlalchemy.Connection,
    claimed: Claimed,
    progress: Progress | None,
    *,
    next_at: datetime,
    reason: str | None = None,
) -> None:
    """Let an unfinished check go on at `next_at`. With `reason`, it has failed."""
    outcome = {"reason": reason, "attempts": claimed.attempts + 1 if reason else 0}
    place = {"began_at": progress.began_at, "cursor": progress.cursor} if progress else {}
    _end(conn, claimed, due_at=next_at, **outcome, **place)


def finish(
    conn: sqlalchemy.Connection, claimed: Claimed, *, since: datetime, now: datetime, next_at: datetime
) -> None:
    """End a check that has searched all of the log; the next one at `next_at` searches it from `since` on."""
    outcome = {"checked_at": now, "reason": None, "attempts": 0, "is_urgent": False}
    _end(conn, claimed, due_at=next_at, since=since, began_at=None, cursor=None, **outcome)
    old = redeliveries.c.requested_at < now - KEPT
    conn.execute(delete(redeliveries).where(redeliveries.c.connection == claimed.connection.id, old))


def summary(conn: sqlalchemy.Connection, connection: str) -> Summary | None:
    """Return what is known of the failed deliveries of a connection; None without a log."""
    mine = redelivery_checks.c.connection == connection
    row = conn.execute(select(redelivery_checks).where(mine)).one_or_none()
    if row is None:
        return None
    requested = select(
        func.count().label("requested"),
        func.count().filter(redeliveries.c.is_given_up.is_(True)).label("given_up"),
        func.max(redeliveries.c.requested_at).label("requested_at"),
    ).where(redeliveries.c.connection == connection, redeliveries.c.requests > 0)
    return from_row(Summary, row, **conn.execute(requested).one()._mapping)  # noqa: SLF001 - public


def _advanced(at: datetime) -> sqlalchemy.Update:
    """Return the statement that makes checks due at a moment, unless they are due earlier."""
    return update(redelivery_checks).where(redelivery_checks.c.due_at > at).values(due_at=at)


def _without(identity_ids: Collection[str]) -> Sequence[ColumnElement[bool]]:
    """Return the condition of checks with other identities than these."""
    if not identity_ids:
        return ()
    theirs = select(connection_rows.c.id).where(connection_rows.c.identity.in_(identity_ids))
    return (redelivery_checks.c.connection.not_in(theirs),)


def _end(conn: sqlalchemy.Connection, claimed: Claimed, **values: object) -> None:
    _TASKS.end(conn, claimed.connection.id, claimed_until=claimed.due_at, **values)
