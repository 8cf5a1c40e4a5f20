"""Signed tickets: who holds one may do one thing until it ends, and nothing else. Pure: time comes in."""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta

_MAX_EXPIRY_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Ticket:
    """When a ticket ends, in seconds since 1970, and what proves that it was made here."""

    expires: str
    signature: str


class Tickets:
    """Makes and checks tickets. `valid` is how long one holds."""

    def __init__(self, key: bytes, *, valid: timedelta) -> None:
        """Sign with this key; nobody else may have it."""
        self._key = key
        self._valid = valid

    def issue(self, subject: str, *, now: datetime) -> Ticket:
        """Return a ticket for this subject."""
        expires = str(int((now + self._valid).timestamp()))
        return Ticket(expires, self._sign(subject, expires))

    def holds(self, subject: str, ticket: Ticket, *, now: datetime) -> bool:
        """Say whether a ticket was issued here for this subject, and has not ended."""
        expected = self._sign(subject, ticket.expires)
        is_ours = hmac.compare_digest(expected.encode(), ticket.signature.encode())
        expires = ticket.expires
        is_number = expires.isascii() and expires.isdigit() and len(expires) <= _MAX_EXPIRY_DIGITS
        return is_ours and is_number and now.timestamp() < int(expires)

    def _sign(self, subject: str, expires: str) -> str:
        return hmac.digest(self._key, f"{subject}\n{expires}".encode(), "sha256").hex()
