"""Conditional requests: https://www.rfc-editor.org/rfc/rfc9110#section-13.

The tag of a record with settings is `"VERSION-DIGEST"`: the version is that of its settings, the digest that
of the whole representation. If-None-Match compares the whole tag. If-Match compares only the version, because
the rest, such as the health of a connection, changes by itself: it is no change that could be lost.
"""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel
from starlette.requests import Request

from gateway.errors import Changed

_DIGEST_BYTES = 16
_TAG = re.compile(r'(W/)?"([^"]*)"')
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STEP = timedelta(microseconds=1)


def tag_of(model: BaseModel, content: bytes) -> str:
    """Return the ETag of a model that is answered with this content."""
    digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()
    updated_at = getattr(model, "updated_at", None)
    return f'"{_version(updated_at)}-{digest}"' if isinstance(updated_at, datetime) else f'"{digest}"'


def is_known(request: Request, etag: str) -> bool:
    """Return whether If-None-Match names the tag: the client has this content. Weak tags count."""
    header = request.headers.get("if-none-match")
    if header is None:
        return False
    return header.strip() == "*" or any(f'"{tag}"' == etag for _, tag in _TAG.findall(header))


def later(now: datetime, before: datetime) -> datetime:
    """Return when a record that was last updated at `before` is updated now: never the same instant."""
    return max(now, before + _STEP)


@dataclass(frozen=True, slots=True)
class IfMatch:
    """The condition of a change: the header If-Match, if the client has sent it."""

    header: str | None

    @classmethod
    def of(cls, request: Request) -> "IfMatch":
        """Return the condition of a request."""
        return cls(request.headers.get("if-match"))

    def check(self, name: str, updated_at: datetime) -> None:
        """Return if the condition holds for a record. Call it in the transaction that changes the record.

        Raises `Changed`. Weak tags never match.
        """
        if self.header is None or self.header.strip() == "*":
            return
        given = {tag.partition("-")[0] for weak, tag in _TAG.findall(self.header) if not weak}
        if _version(updated_at) not in given:
            raise Changed(f"{name} was changed at {updated_at:%Y-%m-%d %H:%M:%S} UTC: read it again")


def _version(updated_at: datetime) -> str:
    return f"{(updated_at - _EPOCH) // _STEP:x}"
