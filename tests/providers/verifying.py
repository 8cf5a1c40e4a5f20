"""Verify a delivery as a provider's module does."""

from collections.abc import Mapping
from typing import Any

from providers.model import Provider, VerifiedRequest
from testing.corpus import NOW, SECRET

BODY = b'{"object_kind":"push"}'


def verify(
    provider: Provider, headers: Mapping[str, str], body: bytes = BODY, *secrets: bytes, **more: Any
) -> VerifiedRequest:
    """Verify at the time of the tests."""
    settings: dict[str, Any] = {"auth": {}, "now": NOW} | more
    return provider.verify(headers=headers, body=body, secrets=secrets or (SECRET,), **settings)
