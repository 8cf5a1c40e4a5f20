"""Signs in at providers as stored identities: the headers of API requests, and git's credentials for https.

A kind of identity either has a token that an administrator has entered, or obtains short-lived ones. Those
are in memory only, one for each identity and scope.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, Protocol

from gateway.fetch.credentials import Bearer, Login, token_login
from gateway.provider_apis import github_app
from gateway.provider_apis.apis import APIS, LimitedIdentity
from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.operation import Operation
from gateway.provider_apis.webhooks import ListedRepository, Place
from gateway.store.identities import Identity, Unsealed

# So that no token expires during an operation or a fetch.
_MARGIN = timedelta(minutes=5)

Purpose = Literal["fetch", "webhooks", "statuses"]
"""To read a repository, or the list of an owner's repositories; to manage webhooks; to set statuses."""


@dataclass(frozen=True, slots=True)
class Use:
    """What an identity is used for, and where."""

    place: Place
    purpose: Purpose


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """A short-lived token."""

    value: str = field(repr=False)
    expires_at: datetime


class IdentityKind(Protocol):
    """How the tokens of one kind of identity are obtained and sent."""

    def scope(self, use: Use) -> Hashable:
        """Return what a token is good for: uses with the same scope share a token."""

    async def obtain(self, unsealed: Unsealed, use: Use) -> AccessToken:
        """Obtain a token. Raise `ApiUnavailable` if a retry may succeed, `ApiRefused` if it cannot."""

    def authorization(self, token: str) -> Mapping[str, str]:
        """Return the headers of an API request with a token."""

    def git_credentials(self, token: str) -> Login | Bearer:
        """Return what git sends for a token."""


class SignedIn(LimitedIdentity, Protocol):
    """An identity in use."""

    async def git_credentials(self) -> Login | Bearer:
        """Return git's credentials for https. Raise `ApiError`."""

    def forget_token(self) -> None:
        """Obtain another token for the next use, because the last was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIdentity:
    """An identity with a token that is never renewed."""

    provider: str
    name: str
    token: str = field(repr=False)
    user: str | None = None

    @property
    def requests_per_hour(self) -> int:
        """Return how many requests it may send to one host in an hour."""
        return APIS[self.provider].REQUESTS_PER_HOUR

    @property
    def write_limits(self) -> Sequence[WriteLimit]:
        """Return how many of them may write."""
        return APIS[self.provider].WRITE_LIMITS

    async def headers(self, *, renew: bool) -> Mapping[str, str]:  # noqa: ARG002 - there is no other token
        """Return the headers of a request."""
        api = APIS[self.provider]
        return {**api.HEADERS, **api.authorization(self.token, user=self.user)}

    async def git_credentials(self) -> Login | Bearer:
        """Return git's credentials for https."""
        return token_login(self.user, self.token, self.provider)

    def forget_token(self) -> None:
        """Do nothing: there is no other token."""


@dataclass(slots=True)
class _Slot:
    """A token. Whoever holds the lock may obtain another."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    token: AccessToken | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """The short-lived tokens of a process."""

    clock: Callable[[], datetime]
    _slots: dict[Hashable, _Slot] = field(default_factory=dict, repr=False)

    async def get(self, key: Hashable, obtain: Callable[[], Awaitable[AccessToken]]) -> AccessToken:
        """Return the token of a key, which is obtained by one task at a time."""
        slot = self._slots.setdefault(key, _Slot())
        async with slot.lock:
            if slot.token is None or self._is_over(slot.token):
                self._discard_old()
                slot.token = await obtain()
            return slot.token

    def forget(self, key: Hashable, token: AccessToken | None) -> None:
        """Forget a token, unless another is in its place."""
        slot = self._slots.get(key)
        if slot is not None and slot.token is token:
            slot.token = None

    def _is_over(self, token: AccessToken) -> bool:
        return token.expires_at - _MARGIN <= self.clock()

    def _discard_old(self) -> None:
        for key, slot in list(self._slots.items()):
            if not slot.lock.locked() and (slot.token is None or self._is_over(slot.token)):
                del self._slots[key]


@dataclass(slots=True, kw_only=True)
class _ShortLived:
    """An identity whose tokens are obtained when they are needed. It belongs to one task."""

    unsealed: Unsealed
    use: Use
    kind: IdentityKind
    tokens: "_Tokens"
    _sent: AccessToken | None = None

    @property
    def name(self) -> str:
        """Return the name that errors show."""
        return self.unsealed.identity.name

    @property
    def requests_per_hour(self) -> int:
        """Return how many requests it may send to one host in an hour."""
        return APIS[self.unsealed.identity.provider].REQUESTS_PER_HOUR

    @property
    def write_limits(self) -> Sequence[WriteLimit]:
        """Return how many of them may write."""
        return APIS[self.unsealed.identity.provider].WRITE_LIMITS

    async def headers(self, *, renew: bool) -> Mapping[str, str]:
        """Return the headers of a request."""
        if renew:
            self.forget_token()
        return self.kind.authorization(await self._token())

    async def git_credentials(self) -> Login | Bearer:
        """Return git's credentials for https."""
        return self.kind.git_credentials(await self._token())

    def forget_token(self) -> None:
        """Obtain another token for the next use, unless another task already has."""
        self.tokens.forget(self._key, self._sent)

    @property
    def _key(self) -> Hashable:
        identity = self.unsealed.identity
        # A changed identity has another secret, or other settings.
        return identity.id, identity.updated_at, self.kind.scope(self.use)

    async def _token(self) -> str:
        self._sent = await self.tokens.get(self._key, lambda: self.kind.obtain(self.unsealed, self.use))
        return self._sent.value


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


class SignIn:
    """Signs in as stored identities. It keeps the tokens of a process, so there is one for each process."""

    def __init__(self, kinds: Mapping[str, IdentityKind], *, clock: Callable[[], datetime] = utc_now) -> None:
        """Obtain no token yet."""
        self._kinds = kinds
        self._tokens = _Tokens(clock=clock)

    def identity(self, unsealed: Unsealed, use: Use) -> SignedIn:
        """Return an identity for one use by one task. Nothing is requested yet."""
        identity = unsealed.identity
        if identity.kind == "token":
            return TokenIdentity(
                provider=identity.provider, name=identity.name, token=unsealed.secret, user=identity.user
            )
        kind = self._kinds[identity.kind]
        return _ShortLived(unsealed=unsealed, use=use, kind=kind, tokens=self._tokens)


def repositories_of(identity: Identity, place: Place) -> Operation[Sequence[ListedRepository]]:
    """Return the operation that lists the repositories of a place; an App's are those of its installation."""
    if identity.kind == "github-app":
        return github_app.repositories()
    return APIS[identity.provider].repositories(place)


def api_url(identity: Identity, place: Place) -> str:
    """Return the base URL of the API of a place."""
    return identity.api_url or APIS[identity.provider].base_url(place)
