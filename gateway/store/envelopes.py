"""Sealed values under a new wrapping key: see `gateway.crypto.keyring`."""

from collections.abc import Callable
from typing import Any

import sqlalchemy
from sqlalchemy import Column, select, update

from gateway.crypto.keyring import Keyring


def rewrap(
    conn: sqlalchemy.Connection,
    keyring: Keyring,
    sealed: Column[Any],
    *,
    key: Column[Any],
    context: Callable[[str], str],
) -> int:
    """Seal the data keys of a column's values under the current wrapping key; return how many there are.

    `key` is the primary key of the table, from which `context` makes the context of each value.
    """
    # Locked as by the update: a value may be replaced meanwhile, and the old one must not take its place.
    found = conn.execute(select(key, sealed).where(sealed.is_not(None)).with_for_update(key_share=True)).all()
    for name, envelope in found:
        rewrapped = keyring.rewrap(envelope, context=context(name))
        conn.execute(update(sealed.table).where(key == name).values({sealed: rewrapped}))
    return len(found)
