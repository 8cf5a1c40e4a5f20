"""Rotates the tokens of identities at GitLab before they end."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, SettingError, StoreUnavailable
from gateway.provider_apis import gitlab_tokens
from gateway.provider_apis.apis import ProviderApis
from gateway.provider_apis.gitlab_tokens import NewToken, OwnToken
from gateway.provider_apis.operation import ApiError, ApiLimited, ApiRefused, Operation, T
from gateway.provider_apis.sign_in import SignIn, Use, api_url
from gateway.provider_apis.webhooks import Place
from gateway.store import identities, rotations
from gateway.store.database import Database
from gateway.store.identities import Unsealed
from gateway.store.rotations import Rotation
from gateway.threads import to_the_end

log = structlog.get_logger()

# A day before the first warning, so that only a token that cannot be rotated is announced.
_ROTATE_BEFORE = timedelta(days=15)
_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRotation:
    """Rotates tokens two weeks before they end, and short-lived ones after half of their lifetime.

    GitLab revokes the old token as soon as it answers. Until the new one is stored it exists only in this
    process, which therefore stores it before it does anything else, and does not end meanwhile unless it is
    killed.
    """

    database: Database
    keyring: Keyring
    apis: ProviderApis
    sign_in: SignIn

    async def rotate_due(self, now: datetime) -> dict[str, str]:
        """Rotate the tokens that are due. Return why others are not rotated, by the ids of the identities.

        Raise `StoreUnavailable`.
        """
        reasons = {}
        for identity_id in await self.database.read(rotations.rotating):
            try:
                token = await self.database.read(
                    identities.unseal, keyring=self.keyring, identity_id=identity_id
                )
                await self._rotate_if_due(token, now)
            except (ApiError, SettingError) as error:
                reasons[identity_id] = str(error)
            except NotFound:
                continue  # it was deleted a moment ago
        return reasons

    async def _rotate_if_due(self, token: Unsealed, now: datetime) -> None:
        own = await self._own(token)
        if own.expires_at != token.identity.expires_at:
            await self.database.write(rotations.expires, token, own.expires_at)
        if own.expires_at is None or own.lifetime is None:
            return
        if own.expires_at - now > min(_ROTATE_BEFORE, own.lifetime / 2):
            return
        if not own.scopes & gitlab_tokens.ROTATES:
            raise ApiError("GitLab rotates only a token with the scope self_rotate or api")
        started = await self.database.write(rotations.start, keyring=self.keyring, token=token, now=now)
        if started is not None:
            stopping = asyncio.Event()
            replacing = asyncio.ensure_future(self._replace(started, token, now + own.lifetime, stopping))
            await to_the_end(replacing, stop=stopping.set)

    async def _own(self, token: Unsealed) -> OwnToken:
        try:
            return await self._run(token, gitlab_tokens.own_token())
        except ApiRefused as error:
            begun = await self.database.read(rotations.started_at, identity_id=token.identity.id)
            if begun is None:
                raise
            raise ApiError(
                f"Pushgate was stopped while it rotated this token at {begun.isoformat()}, before the new one"
                f" was stored; create another at GitLab ({error})"
            ) from error

    async def _replace(
        self, started: Rotation, token: Unsealed, ends: datetime, stopping: asyncio.Event
    ) -> None:
        """Rotate a token, and store the new one."""
        name = started.identity.name
        log.info("a token is being rotated", identity=name)
        try:
            new = await self._run(token, gitlab_tokens.rotate(expires_on=ends.date()))
        except (ApiRefused, ApiLimited):
            # After other errors the answer may have been lost. Then the next check of the token shows it.
            await self.database.write(rotations.abandon, started)
            raise
        if await self._store(started, new, stopping):
            expires_at = new.expires_at.isoformat() if new.expires_at else None
            log.info("a token was rotated", identity=name, expires_at=expires_at)
        else:
            log.warning("a rotated token is not used: the identity has another by now", identity=name)

    async def _store(self, started: Rotation, new: NewToken, stopping: asyncio.Event) -> bool:
        """Store a new token. While the database does not answer, try again until this process ends."""
        while True:
            try:
                return await self.database.write(
                    rotations.finish,
                    keyring=self.keyring,
                    rotation=started,
                    secret=new.value,
                    expires_at=new.expires_at,
                    now=datetime.now(UTC),
                )
            except StoreUnavailable as error:
                if stopping.is_set():
                    log.exception("a rotated token is lost: create another", identity=started.identity.name)
                    raise
                log.warning(
                    "a rotated token cannot be stored yet: do not kill this process",
                    identity=started.identity.name,
                    reason=str(error),
                )
            await asyncio.sleep(_RETRY_SECONDS)

    async def _run(self, token: Unsealed, operation: Operation[T]) -> T:
        place = Place(f"https://{identities.host(token.identity)}", "server")
        return await self.apis.run(
            operation,
            base_url=api_url(token.identity, place),
            identity=self.sign_in.identity(token, Use(place, "webhooks")),
        )
