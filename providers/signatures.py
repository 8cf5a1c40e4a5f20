"""Verify that a sender has a secret: bytes in, the index of the matching secret out.

Every comparison takes constant time and tries every live secret. A failed verification raises `Unverified`
instead of returning a bool, which a caller could forget to check.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import datetime

from providers.errors import Unverified

# https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
SIGNING_PREFIX = b"whsec_"

MIN_SECRET_BYTES = 16
"""The minimum length of a secret, so that it cannot be guessed."""

_MAX_CLOCK_SKEW = 300
# A rotation has two signatures; each is compared with the signature of each live secret.
_MAX_SIGNATURES = 20
_TIMESTAMP = re.compile(r"[0-9]{1,12}", re.ASCII)


def raw(value: str) -> bytes:
    """Return a header's bytes for comparison, without ever raising an encoding error."""
    try:
        return value.encode("latin-1")  # as servers decode them
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")


def fitting(given: bytes, expected: Sequence[bytes]) -> int | None:
    """Compare `given` with every candidate; return the index of the equal one, or None."""
    found = None
    for index, candidate in enumerate(expected):
        if hmac.compare_digest(given, candidate):
            found = index
    return found


def check_secrets(secrets: Sequence[bytes]) -> None:
    """Raise `Unverified` if there is no secret, or an empty one: no connection is ever open."""
    if not secrets or not all(secrets):
        raise Unverified("this connection has no secret, so nothing can be verified: rotate its secret")


def hmac_hex(body: bytes, secret: bytes) -> str:
    """Return the lower-case hex HMAC-SHA256 of the raw body."""
    return hmac.digest(secret, body, hashlib.sha256).hex()


def verify_hmac_hex(
    *, header: str, value: str | None, prefix: str, body: bytes, secrets: Sequence[bytes]
) -> int:
    """Check a signature of the form `prefix` + lower-case hex HMAC-SHA256 over the raw body.

    Returns the index of the matching secret. Raises `Unverified` with a message that names the header.
    """
    check_secrets(secrets)
    if not value:
        raise Unverified(f"no {header} header: is the secret set in the webhook's settings?")
    found = fitting(raw(value), [raw(prefix + hmac_hex(body, secret)) for secret in secrets])
    if found is None:
        raise Unverified(f"{header} does not fit the body and this connection's secret")
    return found


def verify_token(*, header: str, value: str | None, secrets: Sequence[bytes]) -> int:
    """Check a header whose value is the secret itself. Raises `Unverified`."""
    check_secrets(secrets)
    if not value:
        raise Unverified(f"no {header} header: is the secret set in the webhook's settings?")
    found = fitting(raw(value), secrets)
    if found is None:
        raise Unverified(f"{header} is not this connection's secret")
    return found


def verify_basic(*, value: str | None, user: str | None, secrets: Sequence[bytes]) -> int:
    """Check an Authorization header of the Basic scheme (RFC 7617): its password is the secret.

    The user name is checked only if one is given. Raises `Unverified`.
    """
    check_secrets(secrets)
    if not value:
        raise Unverified("no Authorization header: are user name and password set in the webhook's settings?")
    scheme, _, encoded = value.partition(" ")
    credentials = _decode(raw(encoded.strip()))
    if scheme.lower() != "basic" or credentials is None:
        raise Unverified("the Authorization header is not one of the Basic scheme")
    name, _, password = credentials.partition(b":")
    found = fitting(password, secrets)
    fits = user is None or hmac.compare_digest(name, user.encode())
    if found is None or not fits:
        raise Unverified("the Authorization header's user name or password is not this connection's")
    return found


def signing_key(secret: bytes) -> bytes | None:
    """Return the key of a signing secret, or None if it has none.

    After `whsec_` the key is base64; without that prefix, the secret's own bytes are the key.
    """
    if not secret.startswith(SIGNING_PREFIX):
        return secret or None
    return _decode(secret.removeprefix(SIGNING_PREFIX)) or None


def is_weak(secret: bytes) -> bool:
    """Return whether a secret is short enough to be guessed; for a signing secret, the key counts."""
    return len(signing_key(secret) or secret) < MIN_SECRET_BYTES


def standard_signature(*, key: bytes, id: str, timestamp: str, body: bytes) -> str:  # noqa: A002
    """Return the signature of the Standard Webhooks scheme: `v1,` and base64."""
    content = b".".join((raw(id), raw(timestamp), body))
    return "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()


def verify_standard(
    *, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes], now: datetime
) -> int:
    """Check webhook-id, webhook-timestamp and webhook-signature, of which one signature must match.

    Returns the index of the matching secret. Raises `Unverified`.
    """
    check_secrets(secrets)
    id_, timestamp, sent = (headers.get(f"webhook-{part}", "") for part in ("id", "timestamp", "signature"))
    if not (id_ and timestamp and sent):
        raise Unverified("no webhook-id, webhook-timestamp and webhook-signature: is the delivery signed?")
    # With a dot in the id, the same signed bytes could be split into other parts.
    if "." in id_ or ", " in sent or sent.count(" ") >= _MAX_SIGNATURES:
        raise Unverified("webhook-id or webhook-signature is not of the form that the scheme prescribes")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise Unverified("webhook-timestamp is not a number of seconds")
    if abs(now.timestamp() - int(timestamp)) > _MAX_CLOCK_SKEW:
        raise Unverified(f"webhook-timestamp is over {_MAX_CLOCK_SKEW} s from now: is a clock wrong?")
    keys = [signing_key(secret) for secret in secrets]
    expected = [
        raw(standard_signature(key=key, id=id_, timestamp=timestamp, body=body)) if key else b""
        for key in keys
    ]
    found = [fitting(raw(signature), expected) for signature in sent.split(" ") if signature]
    for index in found:
        if index is not None:
            return index
    if None in keys:
        raise Unverified("this connection's signing secret is not whsec_ and base64: rotate its secret")
    raise Unverified("webhook-signature does not fit the body and this connection's secret")


def verify_standard_or_token(
    *,
    headers: Mapping[str, str],
    body: bytes,
    header: str,
    token: str | None,
    secrets: Sequence[bytes],
    now: datetime,
) -> int:
    """Check the signature if a live secret is a signing secret (`whsec_`), else the token in `header`.

    A token never replaces a signature, but if a plain secret is live too, a wrong token is refused.
    Returns the index of the matching secret. Raises `Unverified`.
    """
    check_secrets(secrets)
    signing = [index for index, secret in enumerate(secrets) if secret.startswith(SIGNING_PREFIX)]
    if not signing:
        return verify_token(header=header, value=token, secrets=secrets)
    if token and not headers.get("webhook-signature"):
        raise Unverified(
            f"no webhook-signature, only {header}: the secret belongs into the field for the signing token,"
            " or, where there is no such field, a secret that does not begin with whsec_ into this one"
        )
    own = [secrets[index] for index in signing]
    found = verify_standard(headers=headers, body=body, secrets=own, now=now)
    plain = [secret for secret in secrets if not secret.startswith(SIGNING_PREFIX)]
    if plain and token:
        verify_token(header=header, value=token, secrets=plain)
    return signing[found]


def sign_standard(*, secret: bytes, id: str, body: bytes, now: datetime) -> dict[str, str]:  # noqa: A002
    """Return the three headers of the Standard Webhooks scheme. Raises `ValueError` without a key."""
    key = signing_key(secret)
    if key is None:
        raise ValueError("the secret is not whsec_ and base64")
    timestamp = str(int(now.timestamp()))
    signature = standard_signature(key=key, id=id, timestamp=timestamp, body=body)
    return {"webhook-id": id, "webhook-timestamp": timestamp, "webhook-signature": signature}


def _decode(encoded: bytes) -> bytes | None:
    """Decode base64, padded or not; return None if it is invalid."""
    try:
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except binascii.Error:
        return None
