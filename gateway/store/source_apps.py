"""GitHub Apps that are being made for sources, of a manifest.

GitHub sends the browser back with a code, which a worker exchanges for the App and its secrets within an
hour. A code is stored sealed until then. Each source has rounds, so that the state that a page of ours has
given to GitHub is accepted once.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy
from sqlalchemy import delete, insert, select

from gateway.crypto.keyring import Keyring
from gateway.errors import Conflict, SettingError
from gateway.store import connections, envelopes, identities, registrations, sources
from gateway.store.app_tables import source_apps
from gateway.store.due_tasks import DueTasks
from gateway.store.identities import Identity
from gateway.store.sources import Source
from gateway.store.tables import sources as sources_table

CODE_VALID = timedelta(hours=1)
"""How long GitHub accepts a code, and how long Pushgate accepts the state that comes with it."""

EXCHANGES = DueTasks(source_apps, longest=timedelta(days=1), key=("source",))
"""The exchanges of codes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What became of the last code of a source. `reason` is why it could not be exchanged."""

    is_pending: bool
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A code that is to be exchanged, claimed until `due_at`. Without a `code`, `obstacle` says why."""

    source: Source
    due_at: datetime
    attempts: int
    received_at: datetime
    code: str | None = field(default=None, repr=False)
    obstacle: str = ""


def current_round(conn: sqlalchemy.Connection, source_id: str) -> int:
    """Return the round of a source: how many codes it has accepted."""
    query = select(source_apps.c.round).where(source_apps.c.source == source_id)
    return conn.execute(query).scalar() or 0


def receive(
    conn: sqlalchemy.Connection, keyring: Keyring, source: Source, code: str, *, of_round: int, now: datetime
) -> None:
    """Store a code, to be exchanged now. Raise `Conflict` if the round has one, or for a second identity."""
    mine = sources_table.c.connection == source.id
    conn.execute(select(sources_table.c.connection).where(mine).with_for_update()).all()
    if of_round != current_round(conn, source.id):
        raise Conflict("GitHub's answer was used already")
    if source.identity is not None:
        raise Conflict(f"{source.name} has an identity already: delete the new App at GitHub")
    conn.execute(delete(source_apps).where(source_apps.c.source == source.id))
    values = {
        "source": source.id,
        "round": of_round + 1,
        "due_at": now,
        "attempts": 0,
        "received_at": now,
        "sealed": keyring.seal(code.encode(), context=_context(source.id)),
    }
    conn.execute(insert(source_apps).values(**values))


def of(conn: sqlalchemy.Connection, source_ids: Collection[str]) -> dict[str, Exchange]:
    """Return what became of the codes of sources, of those that have received one."""
    found = conn.execute(select(source_apps).where(source_apps.c.source.in_(source_ids)))
    return {row.source: Exchange(is_pending=row.sealed is not None, reason=row.reason) for row in found}


def claim(conn: sqlalchemy.Connection, keyring: Keyring, *, now: datetime, until: datetime) -> Claimed | None:
    """Claim a code that is due; None if none is."""
    row = EXCHANGES.claim(conn, now=now, until=until)
    if row is None:
        return None
    code, obstacle = None, ""
    try:
        code = keyring.open(row.sealed, context=_context(row.source)).decode()
    except SettingError as error:
        obstacle = str(error)
    return Claimed(
        source=sources.get(conn, row.source),
        due_at=until,
        attempts=row.attempts,
        received_at=row.received_at,
        code=code,
        obstacle=obstacle,
    )


def finish(
    conn: sqlalchemy.Connection,
    keyring: Keyring,
    claimed: Claimed,
    app: Identity,
    *,
    private_key: str,
    webhook_secret: str | None,
    now: datetime,
) -> Identity:
    """Store a new App as the identity of its source, and request the webhook and the listing.

    Return the identity with its final name. Raise `NotFound` if the source was deleted.
    """
    source = sources.get(conn, claimed.source.id)
    added = identities.add_named(conn, keyring, app, private_key)
    if webhook_secret is not None:
        connections.add_secret(conn, keyring, source.id, webhook_secret.encode(), now=now)
    sources.set_identity(conn, source.id, added.id, now=now)
    registrations.request(conn, source.id, "register", now=now)
    _end(conn, claimed, reason=None)
    return added


def fail(conn: sqlalchemy.Connection, claimed: Claimed, *, reason: str) -> None:
    """Record that a code cannot be exchanged. The user begins again."""
    _end(conn, claimed, reason=reason)


def postpone(conn: sqlalchemy.Connection, claimed: Claimed, *, reason: str, next_at: datetime) -> None:
    """Make an exchange due again later, and record why."""
    later = {"due_at": next_at, "attempts": claimed.attempts + 1, "reason": reason}
    EXCHANGES.end(conn, claimed.source.id, claimed_until=claimed.due_at, **later)


def give_back(conn: sqlalchemy.Connection, claimed: Claimed, *, now: datetime) -> None:
    """Make a claimed exchange due again, for the next process, unless it has ended."""
    EXCHANGES.end(conn, claimed.source.id, claimed_until=claimed.due_at, due_at=now)


def rewrap(conn: sqlalchemy.Connection, keyring: Keyring) -> int:
    """Seal the data keys of all codes under the current wrapping key; return the number of codes."""
    return envelopes.rewrap(conn, keyring, source_apps.c.sealed, key=source_apps.c.source, context=_context)


def _end(conn: sqlalchemy.Connection, claimed: Claimed, *, reason: str | None) -> None:
    ended = {"due_at": None, "sealed": None, "reason": reason}
    EXCHANGES.end(conn, claimed.source.id, claimed_until=claimed.due_at, **ended)


def _context(source_id: str) -> str:
    return f"code of the App of {source_id}"
