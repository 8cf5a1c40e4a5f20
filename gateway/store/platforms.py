"""Platforms that fetch repositories themselves: their addresses and tokens, and when each fetch is due.

A connection that names a platform has a row here. A fetch becomes due in the transaction that settles a push,
and stays due until the platform has fetched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy
from sqlalchemy import bindparam, delete, insert, select, update

from gateway.crypto.keyring import Keyring
from gateway.store import envelopes
from gateway.store.bulk_sql import among
from gateway.store.due_tasks import DueTasks
from gateway.store.rows import from_row
from gateway.store.tables import connections, platform_fetches

# The longest delay or lease of a platform's fetches.
_TASKS = DueTasks(platform_fetches, timedelta(minutes=20))

_MAKE_DUE = (
    update(platform_fetches)
    .where(platform_fetches.c.connection == bindparam("of"))
    .values(due_at=bindparam("now"), attempts=0)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A platform's address, its project's UUID, and the outcome of its last fetch."""

    url: str
    project: str
    fetched_at: datetime | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFetch:
    """A fetch that is due and was claimed until `due_at`."""

    connection: str
    url: str
    project: str
    token: str
    attempts: int
    due_at: datetime


def name(
    conn: sqlalchemy.Connection,
    keyring: Keyring,
    connection: str,
    platform: Platform | None,
    token: str | None,
) -> None:
    """Set or clear a connection's platform. Without a token, the stored token stays."""
    values: dict[str, object] = {
        "platform": {"url": platform.url, "project": platform.project} if platform else None
    }
    if token is not None or platform is None:
        sealed = keyring.seal(token.encode(), context=_context(connection)) if token else None
        values["platform_token"] = sealed
    conn.execute(update(connections).where(connections.c.id == connection).values(**values))
    conn.execute(delete(platform_fetches).where(platform_fetches.c.connection == connection))
    if platform is not None:
        conn.execute(insert(platform_fetches).values(connection=connection, attempts=0))


def of(conn: sqlalchemy.Connection, connection_ids: Sequence[str]) -> dict[str, Platform]:
    """Return the platform of each connection that names one."""
    query = (
        select(
            connections.c.id, connections.c.platform, platform_fetches.c.fetched_at, platform_fetches.c.reason
        )
        .join(platform_fetches)
        .where(among(conn, connections.c.id, connection_ids))
    )
    return {row.id: from_row(Platform, row, **row.platform) for row in conn.execute(query)}


def make_due(conn: sqlalchemy.Connection, connection: str, *, now: datetime) -> None:
    """Make the fetch of a connection's platform due now, if it names one."""
    conn.execute(_MAKE_DUE, {"of": connection, "now": now})


def claim(
    conn: sqlalchemy.Connection, keyring: Keyring, *, now: datetime, until: datetime
) -> PlatformFetch | None:
    """Claim a due fetch; None if no fetch is due."""
    live = platform_fetches.c.connection.in_(
        select(connections.c.id).where(connections.c.deleted_at.is_(None))
    )
    row = _TASKS.claim(conn, live, now=now, until=until)
    if row is None:
        return None
    mine = connections.c.id == row.connection
    of = conn.execute(select(connections.c.platform, connections.c.platform_token).where(mine)).one()
    token = keyring.open(of.platform_token, context=_context(row.connection)).decode()
    return from_row(PlatformFetch, row, **of.platform, token=token, due_at=until)


def is_due(conn: sqlalchemy.Connection, *, now: datetime) -> bool:
    """Return whether a fetch is due. It waits for no writer."""
    return _TASKS.is_due(conn, now=now)


def record(
    conn: sqlalchemy.Connection,
    fetch: PlatformFetch,
    *,
    now: datetime,
    reason: str | None,
    next_at: datetime | None,
) -> None:
    """Record the outcome of a fetch: without `reason` it succeeded; without `next_at` it is not retried."""
    outcome: dict[str, object] = {"reason": reason, "attempts": fetch.attempts + 1 if reason else 0}
    if reason is None:
        outcome["fetched_at"] = now
    mine = platform_fetches.c.connection == fetch.connection
    conn.execute(update(platform_fetches).where(mine).values(**outcome))
    _TASKS.end(conn, fetch.connection, claimed_until=fetch.due_at, due_at=next_at)


def give_back(conn: sqlalchemy.Connection, fetch: PlatformFetch, *, now: datetime) -> None:
    """Make a claimed fetch due again, for the next process, unless it is due already or has ended."""
    _TASKS.end(conn, fetch.connection, claimed_until=fetch.due_at, due_at=now)


def rewrap(conn: sqlalchemy.Connection, keyring: Keyring) -> int:
    """Seal the data keys of all tokens under the current wrapping key; return the number of tokens."""
    return envelopes.rewrap(
        conn, keyring, connections.c.platform_token, key=connections.c.id, context=_context
    )


def _context(connection: str) -> str:
    return f"the platform token of {connection}"
