"""Signed webhooks to receivers of any kind: Standard Webhooks.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import secrets
from datetime import datetime

from gateway.errors import Invalid
from gateway.provider_apis.operation import Operation
from gateway.provider_apis.posting import Message, post
from providers.signatures import SIGNING_PREFIX, sign_standard, signing_key

# https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md#signature-scheme
MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64


def new_secret() -> str:
    """Return a new signing secret, as receivers enter it."""
    return SIGNING_PREFIX.decode() + base64.b64encode(secrets.token_bytes(32)).decode()


def check_secret(secret: str) -> None:
    """Raise `Invalid` if a text is not a signing secret of 24 to 64 bytes."""
    raw = secret.encode()
    key = signing_key(raw) if raw.startswith(SIGNING_PREFIX) else None
    if key is None or not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        raise Invalid(
            f"secret: it must be whsec_ and the base64 of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} random bytes"
        )


def send(*, url: str, secret: str, id: str, body: bytes, now: datetime) -> Operation[None]:  # noqa: A002
    """Send a JSON document, signed. A retry has the same `id`, by which receivers drop repetitions.

    Run it at `posting.origin(url)`. `id` contains no dot. Raise `ApiUnavailable` if a retry may succeed,
    `ApiRefused` if it cannot.
    """
    signed = sign_standard(secret=secret.encode(), id=id, body=body, now=now)
    headers = {"Content-Type": "application/json", **signed}
    return (yield from post(Message(url=url, content=body, headers=headers)))
