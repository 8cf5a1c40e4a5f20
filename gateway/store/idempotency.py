"""Requests with an Idempotency-Key, and their answers: a repetition within a day gets the first answer.

https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
"""

from datetime import datetime, timedelta

import sqlalchemy
from sqlalchemy import delete, insert, select, update

from gateway.crypto.keyring import Keyring
from gateway.errors import KeyInUse, KeyReused
from gateway.store import envelopes
from gateway.store.idempotency_tables import idempotency_keys as keys

KEPT_FOR = timedelta(hours=24)
"""How long an answer is kept."""
_HELD_FOR = timedelta(seconds=60)  # longer than any request takes: a killed process cannot give a key back


def claim(
    conn: sqlalchemy.Connection, keyring: Keyring, key: str, fingerprint: str, *, now: datetime
) -> bytes | datetime:
    """Return the kept answer of a key; or claim the key, and return until when it is held.

    Raise `KeyReused` if the key was used for another request, and `KeyInUse` if the first still runs. Of two
    that claim a new key at the same time, one gets an `IntegrityError`.
    """
    conn.execute(delete(keys).where(keys.c.id == key, keys.c.begun_at <= now - KEPT_FOR))
    found = conn.execute(select(keys).where(keys.c.id == key).with_for_update()).one_or_none()
    held_until = now + _HELD_FOR
    if found is None:
        values = {"id": key, "fingerprint": fingerprint, "begun_at": now, "held_until": held_until}
        conn.execute(insert(keys).values(**values))
        return held_until
    if found.fingerprint != fingerprint:
        raise KeyReused("this Idempotency-Key was used for another request: choose a new one")
    if found.sealed is not None:
        return keyring.open(found.sealed, context=_context(key))
    if found.held_until > now:
        raise in_use()
    conn.execute(update(keys).where(keys.c.id == key).values(begun_at=now, held_until=held_until))
    return held_until


def in_use() -> KeyInUse:
    """Return the error of a key whose first request still runs."""
    return KeyInUse("the first request with this Idempotency-Key still runs: send it again in a moment")


def finish(
    conn: sqlalchemy.Connection, keyring: Keyring, key: str, answer: bytes, *, held_until: datetime
) -> None:
    """Keep the answer of a request that has claimed its key, unless another has claimed it since."""
    sealed = keyring.seal(answer, context=_context(key))
    conn.execute(update(keys).where(*_mine(key, held_until)).values(held_until=None, sealed=sealed))


def release(conn: sqlalchemy.Connection, key: str, *, held_until: datetime) -> None:
    """Forget a claimed key, so that the request can be sent again: it has changed nothing."""
    conn.execute(delete(keys).where(*_mine(key, held_until)))


def forget(conn: sqlalchemy.Connection, *, now: datetime) -> None:
    """Delete the keys whose time is over."""
    conn.execute(delete(keys).where(keys.c.begun_at <= now - KEPT_FOR))


def rewrap(conn: sqlalchemy.Connection, keyring: Keyring) -> int:
    """Seal the data keys of all answers under the current wrapping key; return the number of answers."""
    return envelopes.rewrap(conn, keyring, keys.c.sealed, key=keys.c.id, context=_context)


def _mine(key: str, held_until: datetime) -> tuple[sqlalchemy.ColumnElement[bool], ...]:
    return keys.c.id == key, keys.c.held_until == held_until


def _context(key: str) -> str:
    return f"answer of the key {key}"
