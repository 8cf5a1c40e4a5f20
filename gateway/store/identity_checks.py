"""The checks of identities: what the provider says of each token, and when the next is due."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy
from sqlalchemy import update

from gateway.store.due_tasks import DueTasks
from gateway.store.tables import identities

_TASKS = DueTasks(identities, timedelta(days=1), key=("id",))


@dataclass(frozen=True, slots=True, kw_only=True)
class DueCheck:
    """A check that is due and was claimed until `due_at`. `updated_at` is when the identity last changed."""

    identity: str
    updated_at: datetime
    due_at: datetime


def is_due(conn: sqlalchemy.Connection, *, now: datetime) -> bool:
    """Return whether a check is due. It waits for no writer."""
    return _TASKS.is_due(conn, now=now)


def request(conn: sqlalchemy.Connection, identity_id: str, *, now: datetime) -> None:
    """Make the check of an identity due."""
    conn.execute(update(identities).where(identities.c.id == identity_id).values(due_at=now))


def claim(conn: sqlalchemy.Connection, *, now: datetime, until: datetime) -> DueCheck | None:
    """Claim a check that is due; None if none is."""
    row = _TASKS.claim(conn, now=now, until=until)
    if row is None:
        return None
    return DueCheck(identity=row.id, updated_at=row.updated_at, due_at=until)


def record(
    conn: sqlalchemy.Connection,
    check: DueCheck,
    *,
    rights: Sequence[str] | None,
    expires_at: datetime | None,
    reason: str | None,
    now: datetime,
) -> None:
    """Store what a check has found, unless the identity has changed since. An unknown end stays as it is."""
    values = {"rights": rights, "reason": reason, "checked_at": now}
    if expires_at is not None:
        values["expires_at"] = expires_at
    same = identities.c.id == check.identity, identities.c.updated_at == check.updated_at
    conn.execute(update(identities).where(*same).values(**values))


def postpone(conn: sqlalchemy.Connection, check: DueCheck, *, until: datetime) -> None:
    """Make the next check due then, unless another was requested since the claim."""
    _TASKS.end(conn, check.identity, claimed_until=check.due_at, due_at=until)
