"""Registers the webhooks of connections at their providers, checks them on a schedule, and removes them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.metrics import WEBHOOK_REPAIRS
from gateway.provider_apis import registration
from gateway.provider_apis.apis import APIS, LOGS, LimitedIdentity, ProviderApis
from gateway.provider_apis.operation import ApiError, ApiLimited, ApiUnavailable, Operation, T
from gateway.provider_apis.sign_in import SignIn, Use, api_url
from gateway.provider_apis.webhooks import Place, ProviderApi, Webhook
from gateway.store import redeliveries, registrations
from gateway.store.database import Database
from gateway.store.notify import Waiter
from gateway.store.registrations import Claimed, Registration
from gateway.worker.polling import PAUSE_SECONDS, poll, work_on

log = structlog.get_logger()

CHECK_EVERY = timedelta(hours=6)
_LEASE = timedelta(minutes=5)
_FIRST_DELAY = 5.0
_MAX_DELAY = 3600.0
_MAX_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Registrar:
    """Carries out the tasks of webhook registrations; any number may run side by side.

    Webhook URLs begin with `base_url`.
    """

    database: Database
    keyring: Keyring
    wakeups: Waiter
    apis: ProviderApis
    sign_in: SignIn
    base_url: str

    async def run(self) -> None:
        """Work until cancelled. Record failures on the connection, and retry those that may pass."""
        failure = "the webhook registrar failed"
        await poll(self._carry_out_next, wakeups=self.wakeups, failure=failure, pause=PAUSE_SECONDS)

    async def _carry_out_next(self) -> bool:
        return await work_on(self._claim(), self._carry_out, self._give_back)

    async def _claim(self) -> Claimed | None:
        now = _now()
        if not await self.database.read(registrations.is_due, now=now):
            return None
        return await self.database.write(
            registrations.claim, keyring=self.keyring, now=now, until=now + _LEASE
        )

    async def _give_back(self, claimed: Claimed) -> None:
        await self.database.write(registrations.give_back, claimed, now=_now())

    async def _carry_out(self, claimed: Claimed) -> None:
        try:
            work = self._work(claimed)
            await (self._remove(work) if claimed.task == "remove" else self._inspect(work))
        except ApiError as error:
            await self._failed(claimed, error)

    def _work(self, claimed: Claimed) -> "_Work":
        """Return everything that a claimed task needs. Raise `ApiError` if it cannot be carried out."""
        connection, identity = claimed.connection, claimed.identity
        api = APIS.get(connection.provider)
        if identity is None or api is None:
            raise ApiError(claimed.obstacle or f"{connection.provider} has no API for webhooks")
        place = Place(connection.url, claimed.scope)
        return _Work(
            claimed=claimed,
            api=api,
            place=place,
            base_url=api_url(identity.identity, place),
            identity=self.sign_in.identity(identity, Use(place, "webhooks")),
            wanted=Webhook(
                url=f"{self.base_url}/hooks/{connection.id}",
                secret=claimed.secret,
                events=api.EVENTS,
                auth=connection.auth,
            ),
        )

    async def _inspect(self, work: "_Work") -> None:
        """Check the webhook, or register it, and record what is there now."""
        is_check, known, began = work.claimed.task == "check", work.claimed.known, _now()
        found = await work.run(self.apis, registration.inspect if is_check else registration.register)
        webhook = found.webhook
        recorded = Registration(
            webhook=webhook.id if webhook else None,
            url=webhook.url if webhook else None,
            differences=found.repair.differences if is_check else (),
            problem=webhook.problem if webhook else None,
            checked_at=_now(),
            registered_at=known.registered_at if is_check else began,
            is_tested=known.is_tested if is_check else found.is_tested,
        )
        connection = work.claimed.connection.id
        if not is_check:
            log.info("webhook registered", connection=connection, webhook=recorded.webhook)
            if known.registered_at is not None and found.repair.differences:
                WEBHOOK_REPAIRS.inc()
        elif recorded.differences:
            log.warning(
                "webhook is not in order", connection=connection, differences=list(recorded.differences)
            )
        next_at = _now() + CHECK_EVERY
        await self.database.write(registrations.record, work.claimed, recorded, next_at=next_at, attempts=0)
        if webhook is not None and work.claimed.connection.provider in LOGS:
            may_lack = webhook.problem is not None or (not is_check and found.repair.keep is not None)
            await self.database.write(redeliveries.watch, connection, may_lack=may_lack, now=_now())

    async def _remove(self, work: "_Work") -> None:
        removed = await work.run(self.apis, registration.unregister)
        log.info("webhook removed", connection=work.claimed.connection.id, webhooks=removed)
        await self.database.write(registrations.forget, work.claimed)

    async def _failed(self, claimed: Claimed, error: ApiError) -> None:
        """Record why the task failed; try it again later if that may help."""
        attempts = claimed.attempts + 1
        may_pass = isinstance(error, ApiUnavailable) and attempts < _MAX_TRIES
        delay = backoff(claimed.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
        if isinstance(error, ApiLimited):
            delay = max(delay, math.ceil(error.seconds))
        log.warning(
            "webhook task failed",
            connection=claimed.connection.id,
            task=claimed.task,
            reason=str(error),
            next_try_in_s=round(delay) if may_pass else None,
        )
        if claimed.task == "remove" and not may_pass:
            await self.database.write(registrations.forget, claimed)
            return
        recorded = replace(claimed.known, reason=str(error), checked_at=_now())
        next_at = _now() + (timedelta(seconds=delay) if may_pass else CHECK_EVERY)
        await self.database.write(
            registrations.record, claimed, recorded, next_at=next_at, attempts=attempts if may_pass else 0
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A claimed task, and what its API requests need."""

    claimed: Claimed
    api: ProviderApi
    place: Place
    base_url: str
    identity: LimitedIdentity
    wanted: Webhook

    async def run(self, apis: ProviderApis, operation: Callable[..., Operation[T]]) -> T:
        """Run one of the operations of `gateway.provider_apis.registration`."""
        known = self.claimed.known.url
        # The webhook may have been registered under an earlier public URL.
        running = operation(self.api, self.place, self.wanted, earlier_urls=[known] if known else [])
        return await apis.run(running, base_url=self.base_url, identity=self.identity)


def _now() -> datetime:
    return datetime.now(UTC)
