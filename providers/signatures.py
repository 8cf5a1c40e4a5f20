"""Proofs that a sender knows a secret: bytes in, the index of the secret that fitted out.

Every comparison takes constant time and tries every live secret. Nothing here answers with a bool that a
caller could forget to look at: a proof that fails is raised as `Unverified`.
"""

import hashlib
import hmac
from collections.abc import Sequence

from providers.errors import Unverified


def raw(value: str) -> bytes:
    """Return a header's bytes for comparison; whatever a client sent, never an encoding error."""
    return value.encode("utf-8", "surrogatepass")


def fitting(given: bytes, expected: Sequence[bytes]) -> int | None:
    """Return the index of the expectation that equals `given`, having compared them all, or None."""
    found = None
    for index, candidate in enumerate(expected):
        if hmac.compare_digest(given, candidate):
            found = index
    return found


def hmac_hex(body: bytes, secret: bytes) -> str:
    """Return the lower-case hex HMAC-SHA256 of the raw body."""
    return hmac.digest(secret, body, hashlib.sha256).hex()


def verify_hmac_hex(
    *, header: str, value: str | None, prefix: str, body: bytes, secrets: Sequence[bytes]
) -> int:
    """Check a signature of the form `prefix` + lower-case hex HMAC-SHA256 over the raw body.

    Returns the index of the secret that fitted. Raises `Unverified` with a sentence that names the header.
    """
    if not secrets or not all(secrets):
        raise Unverified("this connection has no secret, so nothing can be verified: rotate its secret")
    if not value:
        raise Unverified(f"no {header} header: is the secret set in the webhook's settings?")
    found = fitting(raw(value), [raw(prefix + hmac_hex(body, secret)) for secret in secrets])
    if found is None:
        raise Unverified(f"{header} does not fit the body and this connection's secret")
    return found
