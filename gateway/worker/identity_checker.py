"""Checks the tokens of identities on a schedule: their rights, their end, and whether they are accepted."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import structlog

from gateway.crypto.keyring import Keyring
from gateway.errors import NotFound, SettingError
from gateway.provider_apis.apis import ProviderApis
from gateway.provider_apis.gitlab_tokens import DEPLOY_TOKEN
from gateway.provider_apis.operation import ApiRefused, ApiUnavailable
from gateway.provider_apis.sign_in import SignIn, Use, api_url
from gateway.provider_apis.token_states import TOKEN_STATES, TokenState
from gateway.provider_apis.webhooks import Place
from gateway.store import identities, identity_checks
from gateway.store.database import Database
from gateway.store.identities import Unsealed
from gateway.store.identity_checks import DueCheck
from gateway.store.notify import Waiter
from gateway.worker.polling import PAUSE_SECONDS, poll, work_on

log = structlog.get_logger()

_EVERY = timedelta(hours=6)
_AFTER_OUTAGE = timedelta(hours=1)
_LEASE = timedelta(minutes=5)
_UNKNOWN = TokenState(rights=None, expires_at=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityChecker:
    """Checks identities when they are added or changed, and then every six hours."""

    database: Database
    keyring: Keyring
    wakeups: Waiter
    apis: ProviderApis
    sign_in: SignIn

    async def run(self) -> None:
        """Check until cancelled."""
        failure = "the check of identities failed"
        await poll(self._check_next, wakeups=self.wakeups, failure=failure, pause=PAUSE_SECONDS)

    async def _check_next(self) -> bool:
        return await work_on(self._claim(), self._check, self._give_back)

    async def _claim(self) -> DueCheck | None:
        now = _now()
        if not await self.database.read(identity_checks.is_due, now=now):
            return None
        return await self.database.write(identity_checks.claim, now=now, until=now + _LEASE)

    async def _give_back(self, check: DueCheck) -> None:
        await self.database.write(identity_checks.postpone, check, until=_now())

    async def _check(self, check: DueCheck) -> None:
        """Record what the provider says. While it does not answer, the result of the last check stays."""
        found, reason = _UNKNOWN, None
        try:
            token = await self.database.read(
                identities.unseal, keyring=self.keyring, identity_id=check.identity
            )
            found = await self._state(token)
        except NotFound:
            return  # it was deleted a moment ago
        except ApiUnavailable:
            await self.database.write(identity_checks.postpone, check, until=_now() + _AFTER_OUTAGE)
            return
        except SettingError as error:
            reason = str(error)
        except ApiRefused as error:
            # After other refusals nothing is known: an older server may not have the operation.
            if error.status == HTTPStatus.UNAUTHORIZED:
                reason = str(error)
                log.warning("the provider refuses an identity", identity=check.identity, reason=reason)
        now = _now()
        await self.database.write(
            identity_checks.record,
            check,
            rights=found.rights,
            expires_at=found.expires_at,
            reason=reason,
            now=now,
        )
        await self.database.write(identity_checks.postpone, check, until=now + _EVERY)

    async def _state(self, token: Unsealed) -> TokenState:
        identity = token.identity
        operation = TOKEN_STATES.get(identity.provider)
        if operation is None or identity.kind != "token" or token.secret.startswith(DEPLOY_TOKEN):
            return _UNKNOWN
        place = Place(f"https://{identities.host(identity)}", "server")
        signed_in = self.sign_in.identity(token, Use(place, "webhooks"))
        return await self.apis.run(operation(), base_url=api_url(identity, place), identity=signed_in)


def _now() -> datetime:
    return datetime.now(UTC)
