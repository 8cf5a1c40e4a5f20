"""New ids. Those of connections cannot be guessed; those of deliveries sort by time."""

import secrets
from datetime import datetime
from uuid import UUID


def connection_id() -> str:
    """Return 96 random bits in hex: the id stands in a public URL and must not be guessed."""
    return secrets.token_hex(12)


def delivery_id(now: datetime) -> str:
    """Return a UUID of version 7: 48 bits of milliseconds, then randomness.

    https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-7
    """
    milliseconds = int(now.timestamp() * 1000)
    value = milliseconds << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))
