"""What providers know of the access token of the requests: its rights, and when it ends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from gateway.provider_apis import gitlab_tokens
from gateway.provider_apis.operation import ApiRequest, Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenState:
    """The rights of a token in the provider's words, and its end; None if the provider does not show them."""

    rights: Sequence[str] | None
    expires_at: datetime | None


def _of_github() -> Operation[TokenState]:
    """Read the headers of any answer. Fine-grained tokens show no rights, tokens without an end show none.

    https://docs.github.com/en/apps/oauth-apps/building-oauth-apps/scopes-for-oauth-apps
    """
    answer = yield ApiRequest(method="GET", path="/", right="an access token")
    scopes = answer.headers.get("x-oauth-scopes")
    return TokenState(
        rights=None if scopes is None else [scope.strip() for scope in scopes.split(",") if scope.strip()],
        expires_at=_github_time(answer.headers.get("github-authentication-token-expiration", "")),
    )


def _of_gitlab() -> Operation[TokenState]:
    own = yield from gitlab_tokens.own_token()
    return TokenState(rights=sorted(own.scopes), expires_at=own.expires_at)


TOKEN_STATES: Mapping[str, Callable[[], Operation[TokenState]]] = {"github": _of_github, "gitlab": _of_gitlab}
"""The operation of each provider that shows the state of a token."""

WEBHOOK_RIGHTS: Mapping[str, frozenset[str]] = {
    "github": frozenset({"repo", "admin:repo_hook"}),
    "gitlab": frozenset({"api"}),
}
"""The rights of which a token needs one to register webhooks, of the providers that show rights."""

STATUS_RIGHTS: Mapping[str, frozenset[str]] = {
    "github": frozenset({"repo", "public_repo", "repo:status"}),
    "gitlab": frozenset({"api"}),
}
"""The rights of which a token needs one to set the statuses of commits."""


def _github_time(text: str) -> datetime | None:
    """Return a time such as `2026-12-30 10:00:00 UTC` or `… +0200`; None for other texts."""
    try:
        return datetime.strptime(text.replace("UTC", "+0000"), "%Y-%m-%d %H:%M:%S %z")
    except ValueError:
        return None
