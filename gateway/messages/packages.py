"""The package in the stored body of a request, which is completed when the request is published or shown.

The body may have megabytes, so it is not decoded: only the value of `package` is read and replaced. It is
the last key of this name, because the fields behind it hold no objects with free keys, and JSON escapes the
quotes in every string.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.messages.execution_request import Package

_KEY = b'"package":'
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPackage:
    """The package that a request was planned with; see `Package`."""

    id: str
    format: str
    sha256: str
    size: int

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the package: its id and its format."""
        return self.id, self.format

    def unsigned(self, base_url: str, *, now: datetime) -> Package:
        """Return the package with a URL that requires the API's token, and that counts as expired."""
        url = f"{base_url}/api/v1/packages/{self.id}?format={self.format}"
        return Package(
            id=self.id, url=url, expires_at=now, sha256=self.sha256, size=self.size, format=self.format
        )


def package_in(body: bytes) -> PlannedPackage | None:
    """Return the package in a body; None if the request has no package."""
    found = _find(body)
    if found is None or found[0] is None:
        return None
    value = found[0]
    return PlannedPackage(**{name: value[name] for name in ("id", "format", "sha256", "size")})


def with_package(body: bytes, package: Package | None) -> bytes:
    """Return a body with another package."""
    found = _find(body)
    if found is None:
        return body
    _, start, end = found
    text = b"null" if package is None else package.model_dump_json().encode()
    return body[:start] + text + body[end:]


def _find(body: bytes) -> tuple[dict[str, Any] | None, int, int] | None:
    """Return the value of `package`, and where it starts and ends; None if there is no such key."""
    at = body.rfind(_KEY)
    if at < 0:
        return None
    start = at + len(_KEY)
    rest = body[start:].decode()
    value, length = _DECODER.raw_decode(rest)
    return value, start, start + len(rest[:length].encode())
