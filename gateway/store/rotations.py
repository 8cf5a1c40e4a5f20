"""Rotations: tokens that Pushgate replaces at the provider before they end.

A provider revokes the old token when it issues the new one. The start of a rotation is stored, so that one
process at a time rotates a token, and so that an interrupted rotation is known as the cause of a token that
the provider refuses.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy
from sqlalchemy import ColumnElement, and_, select, update

from gateway.crypto.keyring import Keyring
from gateway.store.identities import Identity, Unsealed, sealed, unseal
from gateway.store.tables import identities

# A process that has not finished by then has died.
_LEASE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """A rotation that this process has started."""

    identity: Identity
    started_at: datetime


def rotating(conn: sqlalchemy.Connection) -> list[str]:
    """Return the ids of the identities whose tokens Pushgate rotates."""
    return list(conn.execute(select(identities.c.id).where(identities.c.rotates)).scalars())


def started_at(conn: sqlalchemy.Connection, identity_id: str) -> datetime | None:
    """Return when the rotation of a token was started that has not been finished."""
    query = select(identities.c.rotation_started_at).where(identities.c.id == identity_id)
    found: datetime | None = conn.execute(query).scalar()
    return found


def expires(conn: sqlalchemy.Connection, token: Unsealed, expires_at: datetime | None) -> None:
    """Record when a token ends, unless the identity has changed."""
    identity = token.identity
    same = and_(identities.c.id == identity.id, identities.c.updated_at == identity.updated_at)
    conn.execute(update(identities).where(same).values(expires_at=expires_at))


def start(
    conn: sqlalchemy.Connection, keyring: Keyring, token: Unsealed, *, now: datetime
) -> Rotation | None:
    """Start to rotate a token. Return None if another process does, or if the identity has changed."""
    identity_id = token.identity.id
    conn.execute(select(identities.c.id).where(identities.c.id == identity_id).with_for_update()).all()
    current, begun = unseal(conn, keyring, identity_id), started_at(conn, identity_id)
    is_busy = begun is not None and now - _LEASE < begun <= now
    if is_busy or current.secret != token.secret or not current.identity.rotates:
        return None
    mine = identities.c.id == identity_id
    conn.execute(update(identities).where(mine).values(rotation_started_at=now))
    return Rotation(identity=current.identity, started_at=now)


def finish(
    conn: sqlalchemy.Connection,
    keyring: Keyring,
    rotation: Rotation,
    secret: str,
    *,
    expires_at: datetime | None,
    now: datetime,
) -> bool:
    """Store the new token. Return False if the identity was given another token meanwhile, or deleted."""
    envelope = sealed(keyring, rotation.identity.id, secret)
    values = {"sealed": envelope, "expires_at": expires_at, "rotation_started_at": None, "updated_at": now}
    # A check may just have seen the old token refused.
    values |= {"reason": None, "due_at": now}
    return bool(conn.execute(update(identities).where(_is(rotation)).values(**values)).rowcount)


def abandon(conn: sqlalchemy.Connection, rotation: Rotation) -> None:
    """End a rotation that the provider has refused: the old token is still valid."""
    conn.execute(update(identities).where(_is(rotation)).values(rotation_started_at=None))


def _is(rotation: Rotation) -> ColumnElement[bool]:
    return and_(
        identities.c.id == rotation.identity.id, identities.c.rotation_started_at == rotation.started_at
    )
