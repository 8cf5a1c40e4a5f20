"""GitLab's API for the access token of the requests: a personal, project or group access token.

https://docs.gitlab.com/api/personal_access_tokens/
"""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus

from pydantic import BaseModel

from gateway.provider_apis.operation import ApiRefused, ApiRequest, Operation

ROTATES = frozenset({"api", "self_rotate"})
"""The scopes of which a token needs one to rotate itself."""

DEPLOY_TOKEN = "gldt-"  # noqa: S105 - a prefix
"""How deploy tokens begin, for which there is no API."""

_SELF = "/personal_access_tokens/self"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnToken:
    """What GitLab knows of a token."""

    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None

    @property
    def lifetime(self) -> timedelta | None:
        """Return for how many days it was created, which the server permits for the next one as well."""
        if self.expires_at is None:
            return None
        return timedelta(days=(self.expires_at.date() - self.created_at.date()).days)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """The token that has replaced another."""

    value: str = field(repr=False)
    expires_at: datetime | None


class _OwnToken(BaseModel):
    scopes: frozenset[str]
    created_at: datetime
    expires_at: date | None = None


class _NewToken(BaseModel):
    token: str
    expires_at: date | None = None


def own_token() -> Operation[OwnToken]:
    """Return what GitLab knows of the token. A revoked token is refused, without further consequences."""
    answer = yield ApiRequest(method="GET", path=_SELF, right="an access token")
    found = answer.read(_OwnToken)
    ends = _midnight(found.expires_at)
    return OwnToken(scopes=found.scopes, created_at=found.created_at, expires_at=ends)


def rotate(*, expires_on: date) -> Operation[NewToken]:
    """Replace the token. GitLab revokes the old one at once, so store the new one before anything else.

    Whoever rotates a revoked token makes GitLab revoke the tokens that have replaced it: call `own_token`
    first. https://docs.gitlab.com/api/personal_access_tokens/#automatic-reuse-detection
    """
    answer = yield ApiRequest(
        method="POST",
        path=f"{_SELF}/rotate",
        body={"expires_at": expires_on.isoformat()},
        right="scope self_rotate or api",
        may_be_missing=True,
    )
    if answer.status == HTTPStatus.NOT_FOUND:
        raise ApiRefused("this GitLab cannot rotate tokens, which came with 16.10", status=answer.status)
    made = answer.read(_NewToken)
    return NewToken(value=made.token, expires_at=_midnight(made.expires_at))


def _midnight(day: date | None) -> datetime | None:
    """Return when a token ends: at the beginning of its last day, in UTC."""
    return None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC)
