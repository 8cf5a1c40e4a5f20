"""Signed tokens: each allows its bearer one thing until it expires. Pure: the time is an argument."""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta

_MAX_EXPIRY_DIGITS = 12


@dataclass(frozen=True, slots=True)
class SignedToken:
    """When a token expires, in seconds since 1970, and the signature that proves its origin."""

    expires: str
    signature: str


class SignedTokens:
    """Issues and checks signed tokens, which are valid for `valid`."""

    def __init__(self, key: bytes, *, valid: timedelta) -> None:
        """Sign with this key, which must stay secret."""
        self._key = key
        self._valid = valid

    def issue(self, subject: str, *, now: datetime) -> SignedToken:
        """Return a signed token for this subject."""
        expires = str(int((now + self._valid).timestamp()))
        return SignedToken(expires, self._sign(subject, expires))

    def is_valid(self, subject: str, token: SignedToken, *, now: datetime) -> bool:
        """Return whether a token was issued with this key for this subject, and has not expired."""
        expected = self._sign(subject, token.expires)
        is_authentic = hmac.compare_digest(expected.encode(), token.signature.encode())
        expires = token.expires
        is_number = expires.isascii() and expires.isdigit() and len(expires) <= _MAX_EXPIRY_DIGITS
        return is_authentic and is_number and now.timestamp() < int(expires)

    def _sign(self, subject: str, expires: str) -> str:
        return hmac.digest(self._key, f"{subject}\n{expires}".encode(), "sha256").hex()
