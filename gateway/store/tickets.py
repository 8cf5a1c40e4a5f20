"""Signed queries: who holds one may get one package until it ends, and nothing else. Pure: time comes in."""

import hmac
from datetime import datetime, timedelta
from urllib.parse import urlencode

_LONGEST_NUMBER = 12


class Tickets:
    """Makes and checks the queries. `valid` is how long one holds."""

    def __init__(self, key: bytes, *, valid: timedelta) -> None:
        """Sign with this key; nobody else may have it."""
        self._key = key
        self._valid = valid

    def query(self, package_id: str, package_format: str, *, now: datetime) -> str:
        """Return the query of a URL that gets this package."""
        expires = str(int((now + self._valid).timestamp()))
        signature = self._sign(package_id, package_format, expires)
        return urlencode({"format": package_format, "expires": expires, "signature": signature})

    def holds(
        self, package_id: str, package_format: str, *, expires: str, signature: str, now: datetime
    ) -> bool:
        """Say whether a query was made here for this package, and has not ended."""
        expected = self._sign(package_id, package_format, expires)
        is_ours = hmac.compare_digest(expected.encode(), signature.encode())
        is_number = expires.isascii() and expires.isdigit() and len(expires) <= _LONGEST_NUMBER
        return is_ours and is_number and now.timestamp() < int(expires)

    def _sign(self, package_id: str, package_format: str, expires: str) -> str:
        return hmac.digest(self._key, f"{package_id}\n{package_format}\n{expires}".encode(), "sha256").hex()
