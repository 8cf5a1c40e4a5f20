"""New ids. Ids of connections cannot be guessed; ids of deliveries sort by time."""

import secrets
from datetime import datetime


def connection_id() -> str:
    """Return 96 random bits in hex: the id stands in a public URL and must not be guessed."""
    return secrets.token_hex(12)


def delivery_id(now: datetime) -> str:
    """Return a UUID of version 7: 48 bits of milliseconds, then randomness.

    https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7
    """
    rest = secrets.token_hex(10)
    variant = "89ab"[int(rest[3], 16) % 4]
    return f"{delivery_ids_since(now)}-7{rest[:3]}-{variant}{rest[4:7]}-{rest[7:19]}"


def identity_id() -> str:
    """Return 96 random bits in hex."""
    return secrets.token_hex(12)


def delivery_ids_since(moment: datetime) -> str:
    """Return a prefix that sorts before all ids since a moment (in milliseconds) and after all older ids."""
    time = f"{int(moment.timestamp() * 1000):012x}"
    return f"{time[:8]}-{time[8:]}"
