"""Registers the webhooks of connections at their providers, checks them on a schedule, and removes them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import sqlalchemy
import structlog

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.metrics import WEBHOOK_REPAIRS
from gateway.provider_apis import registration
from gateway.provider_apis.apis import APIS, LimitedIdentity, ProviderApis, log_of
from gateway.provider_apis.app_webhook import AppWebhook
from gateway.provider_apis.github_app_sign_in import AppIdentity, explained
from gateway.provider_apis.operation import ApiError, ApiLimited, ApiRefused, ApiUnavailable, Operation, T
from gateway.provider_apis.sign_in import SignIn, Use, api_url
from gateway.provider_apis.webhooks import Place, Webhook, WebhookApi
from gateway.store import redeliveries, registrations
from gateway.store.database import Database
from gateway.store.notify import Waiter
from gateway.store.registrations import Claimed, Registration
from gateway.worker.polling import PAUSE_SECONDS, claim_if_due, poll, work_on

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
        return await claim_if_due(
            self.database, registrations.is_due, registrations.claim, lease=_LEASE, keyring=self.keyring
        )

    async def _give_back(self, claimed: Claimed) -> None:
        await self.database.write(registrations.give_back, claimed, now=_now())

    async def _carry_out(self, claimed: Claimed) -> None:
        try:
            work = self._work(claimed)
            if claimed.task != "remove":
                await self._inspect(work)
            elif claimed.is_of_app:
                await self._leave(work)
            else:
                await self._remove(work)
        except ApiError as error:
            await self._failed(claimed, error)

    def _work(self, claimed: Claimed) -> "_Work":
        """Return everything that a claimed task needs. Raise `ApiError` if it cannot be carried out."""
        connection, identity = claimed.connection, claimed.identity
        api = APIS.get(connection.provider)
        if identity is None or api is None:
            raise ApiError(claimed.obstacle or f"{connection.provider} has no API for webhooks")
        place = Place(connection.url, claimed.scope)
        # The webhook may have been registered under an earlier public URL.
        earlier = [known for known in (claimed.known.url,) if known]
        earlier += [self._url(source) for source in claimed.replaces]
        signed_in: LimitedIdentity = self.sign_in.identity(identity, Use(place, "webhooks"))
        url = self._url(connection.id)
        if claimed.is_of_app:
            signed_in = AppIdentity(unsealed=identity)
        return _Work(
            claimed=claimed,
            api=AppWebhook([url, *earlier]) if claimed.is_of_app else api,
            place=place,
            base_url=api_url(identity.identity, place),
            identity=signed_in,
            wanted=Webhook(url=url, secret=claimed.secret, events=api.EVENTS, auth=connection.auth),
            earlier_urls=earlier,
        )

    def _url(self, connection: str) -> str:
        return f"{self.base_url}/hooks/{connection}"

    async def _inspect(self, work: "_Work") -> None:
        """Check the webhook, or register it, and record what is there now."""
        is_check, known, began = work.claimed.task == "check", work.claimed.known, _now()
        found = await work.run(self.apis, registration.inspect if is_check else registration.register)
        webhook = found.webhook
        recorded = Registration(
            webhook=webhook.id if webhook else None,
            url=webhook.url if webhook else None,
            differences=found.differences,
            problem=webhook.problem if webhook else None,
            checked_at=_now(),
            registered_at=known.registered_at if is_check else began,
            is_tested=known.is_tested if is_check else found.is_tested,
            advice=webhook.advice if webhook else None,
        )
        connection = work.claimed.connection.id
        if not is_check:
            log.info("webhook registered", connection=connection, webhook=recorded.webhook)
            if known.registered_at is not None and found.repair.differences:
                WEBHOOK_REPAIRS.inc()
        if recorded.differences:
            log.warning(
                "webhook is not in order",
                connection=connection,
                differences=list(recorded.differences),
                advice=recorded.advice,
            )
        has_log = log_of(work.claimed.connection.provider, work.place.scope) is not None
        is_repaired = not is_check and found.repair.keep is not None

        def record(conn: sqlalchemy.Connection) -> None:
            registrations.record(conn, work.claimed, recorded, next_at=_now() + CHECK_EVERY, attempts=0)
            if webhook is not None and has_log:
                may_lack = is_repaired or webhook.problem is not None
                redeliveries.watch(conn, connection, may_lack=may_lack, now=_now())

        await self.database.write(record)

    async def _remove(self, work: "_Work") -> None:
        removed = await work.run(self.apis, registration.unregister)
        log.info("webhook removed", connection=work.claimed.connection.id, webhooks=removed)
        await self.database.write(registrations.forget, work.claimed)

    async def _leave(self, work: "_Work") -> None:
        """End the checks of an App's webhook."""
        log.info(
            "the webhook of a GitHub App stays, because it cannot be deleted",
            connection=work.claimed.connection.id,
            url=work.claimed.known.url,
            repair="delete the App at GitHub, or set another URL in its settings",
        )
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
    api: WebhookApi
    place: Place
    base_url: str
    identity: LimitedIdentity
    wanted: Webhook
    earlier_urls: Sequence[str]

    async def run(self, apis: ProviderApis, operation: Callable[..., Operation[T]]) -> T:
        """Run one of the operations of `gateway.provider_apis.registration`."""
        running = operation(self.api, self.place, self.wanted, earlier_urls=self.earlier_urls)
        try:
            return await apis.run(running, base_url=self.base_url, identity=self.identity)
        except ApiRefused as error:
            if not isinstance(self.identity, AppIdentity):
                raise
            raise explained(error, self.identity.unsealed.identity, now=_now()) from None


def _now() -> datetime:
    return datetime.now(UTC)
