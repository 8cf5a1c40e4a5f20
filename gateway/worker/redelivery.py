"""Finds deliveries that failed in the providers' logs, and requests them again.

Reconciliation recovers missed pushes; pull requests and other events are only in the provider's log. The
answer to a request is an ordinary delivery, so what has arrived meanwhile is a duplicate.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import structlog

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.metrics import REDELIVERIES_FAILED, REDELIVERIES_REQUESTED
from gateway.provider_apis.apis import LimitedIdentity, ProviderApis, log_of
from gateway.provider_apis.app_webhook import AppDeliveryLog
from gateway.provider_apis.client import ApiClient
from gateway.provider_apis.delivery_log import DeliveryAttempt, DeliveryLog
from gateway.provider_apis.github_app_sign_in import AppIdentity
from gateway.provider_apis.operation import ApiError, ApiLimited, ApiRefused, ApiUnavailable
from gateway.provider_apis.sign_in import SignIn, Use, api_url
from gateway.provider_apis.webhooks import Place
from gateway.store import redeliveries
from gateway.store.database import Database
from gateway.store.identities import Unsealed
from gateway.store.notify import Waiter
from gateway.store.redeliveries import EVERY, Claimed, Progress
from gateway.store.redeliveries import Redelivery as Requested
from gateway.worker.polling import PAUSE_SECONDS, poll, work_on

log = structlog.get_logger()

MAX_REQUESTS = 3
"""How often a delivery is requested that fails each time."""

_LEASE = timedelta(minutes=5)
# After this time the provider has made the attempt that was requested, and has logged its result.
_RESULT_AFTER = timedelta(minutes=10)
# A delivery may be logged late: the provider waits for its answer, and may have a queue.
_OVERLAP = timedelta(hours=1)
_MINUTE = timedelta(seconds=61)
# Of the requests that an identity may send: the rest is for webhooks and statuses. With less of GitHub's 500
# writes an hour, the log might end before all that an outage has missed is requested.
_SHARE = 0.5
# How long an identity is left alone at least if its share is used up: some requests are permitted then.
_PAUSE = 60.0
_PAGES_AT_ONCE = 50
# One log of a source is that of all its repositories.
_EVERY_OF_SOURCE = timedelta(minutes=10)
_FIRST_DELAY = 60.0
_MAX_DELAY = 3600.0


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redelivery:
    """Searches the logs that are due; any number may run side by side."""

    database: Database
    keyring: Keyring
    wakeups: Waiter
    apis: ProviderApis
    sign_in: SignIn
    clock: Callable[[], datetime] = _now
    # Until when the identities are left alone, by their ids.
    _paused: dict[str, datetime] = field(default_factory=dict)

    async def run(self) -> None:
        """Work until cancelled. Record failures on the connection, and retry those that may pass."""
        failure = "the search for failed deliveries failed"
        await poll(self.check_next, wakeups=self.wakeups, failure=failure, pause=PAUSE_SECONDS)

    async def check_next(self) -> bool:
        """Search the next log that is due, if there is one; return whether there was."""
        return await work_on(self._claim(), self._check, self._give_back)

    async def _claim(self) -> Claimed | None:
        now = self.clock()
        paused = [identity for identity, until in self._paused.items() if until > now]
        if not await self.database.read(redeliveries.is_due, now=now, without=paused):
            return None
        return await self.database.write(
            redeliveries.claim, keyring=self.keyring, now=now, until=now + _LEASE, without=paused
        )

    async def _give_back(self, claimed: Claimed) -> None:
        await self.database.write(redeliveries.interrupt, claimed, None, next_at=self.clock())

    async def _check(self, claimed: Claimed) -> None:
        place, unsealed = Place(claimed.connection.url, claimed.scope), claimed.identity
        delivery_log = log_of(claimed.connection.provider, place.scope)
        if delivery_log is None or unsealed is None or claimed.webhook is None:
            next_at = self.clock() + EVERY
            await self.database.write(
                redeliveries.interrupt, claimed, None, next_at=next_at, reason=claimed.obstacle
            )
            return
        identity: LimitedIdentity = self.sign_in.identity(unsealed, Use(place, "webhooks"))
        if claimed.is_of_app:
            delivery_log, identity = AppDeliveryLog(), AppIdentity(unsealed=unsealed)
        check = _Check(
            claimed=claimed,
            database=self.database,
            log=delivery_log,
            place=place,
            webhook=claimed.webhook,
            progress=claimed.progress or Progress(began_at=self.clock(), cursor=None),
            left=delivery_log.REDELIVERIES_A_MINUTE,
            clock=self.clock,
        )
        base_url = api_url(unsealed.identity, place)
        try:
            async with self.apis.client(base_url=base_url, identity=identity, share=_SHARE) as client:
                await check.run(client)
        except ApiLimited as error:
            self._pause(unsealed, error.seconds)
            await self.database.write(redeliveries.interrupt, claimed, check.progress, next_at=self.clock())
        except ApiUnavailable as error:
            # Its other logs would not be available either.
            self._pause(unsealed, 0)
            delay = backoff(claimed.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
            await self._failed(claimed, check.progress, error, delay=timedelta(seconds=math.ceil(delay)))
        except ApiError as error:
            # Perhaps the page where the search would go on is no longer there.
            start = Progress(began_at=check.progress.began_at, cursor=None)
            await self._failed(claimed, start, error, delay=EVERY)

    def _pause(self, unsealed: Unsealed, seconds: float) -> None:
        self._paused[unsealed.identity.id] = self.clock() + timedelta(seconds=max(seconds, _PAUSE))

    async def _failed(
        self, claimed: Claimed, progress: Progress, error: ApiError, *, delay: timedelta
    ) -> None:
        """Record why a check failed, and when it is tried again."""
        log.warning(
            "the log of deliveries cannot be searched",
            connection=claimed.connection.id,
            reason=str(error),
            next_try_in_s=round(delay.total_seconds()),
        )
        await self.database.write(
            redeliveries.interrupt, claimed, progress, next_at=self.clock() + delay, reason=str(error)
        )


@dataclass(slots=True, kw_only=True)
class _Check:
    """A search of one log, the newest attempts first. `left` is how many requests it may still send."""

    claimed: Claimed
    database: Database
    log: DeliveryLog
    place: Place
    webhook: str
    progress: Progress
    left: int
    clock: Callable[[], datetime]
    is_to_be_repeated: bool = False
    _seen: set[str] = field(default_factory=set)

    async def run(self, client: ApiClient) -> None:
        """Search the log to the end, or as far as one round may, and record that. Raise `ApiError`."""
        # The result of a round's requests is in the log later.
        self.is_to_be_repeated = self.claimed.progress is not None
        for _ in range(_PAGES_AT_ONCE):
            operation = self.log.delivery_log(self.place, self.webhook, self.progress.cursor)
            page = await client.run(operation)
            failed = self._failed(page.attempts)
            if failed and not await self._request(client, failed):
                return await self._interrupt(self.clock() + _MINUTE)
            if page.next is None or self._is_before(page.attempts[-1:]):
                return await self._finish()
            self.progress = Progress(began_at=self.progress.began_at, cursor=page.next)
        return await self._interrupt(self.clock())

    def _failed(self, attempts: Sequence[DeliveryAttempt]) -> list[DeliveryAttempt]:
        """Return the attempts that are the newest of their events, failed, and are of interest."""
        newest = {attempt.guid: attempt for attempt in reversed(attempts) if attempt.guid not in self._seen}
        self._seen |= newest.keys()
        return [
            attempt
            for attempt in newest.values()
            if not attempt.has_succeeded
            and attempt.event in self.log.EVENTS
            and not self._is_before([attempt])
        ]

    def _is_before(self, attempts: Sequence[DeliveryAttempt]) -> bool:
        """Return whether attempts are in the part of the log that was searched before."""
        return any(attempt.at is not None and attempt.at < self.claimed.since for attempt in attempts)

    async def _request(self, client: ApiClient, failed: Sequence[DeliveryAttempt]) -> bool:
        """Request the oldest first; return whether all have been requested that are to be."""
        connection, now = self.claimed.connection.id, self.clock()
        guids = [attempt.guid for attempt in failed]
        since = now - self.log.LOG_KEPT
        arrived = await self.database.read(redeliveries.arrived, connection, guids, since=since)
        known = await self.database.read(redeliveries.known, connection, guids)
        for attempt in failed:
            before = known.get(attempt.guid)
            if attempt.guid in arrived or (before is not None and before.is_given_up):
                continue
            if before is not None and before.requests and before.requested_at > now - _RESULT_AFTER:
                self.is_to_be_repeated = True
            elif before is not None and before.requests >= MAX_REQUESTS:
                await self._give_up(attempt, before)
            elif self.left == 0:
                return False
            else:
                await self._request_one(client, attempt, before.requests if before else 0)
        return True

    async def _request_one(self, client: ApiClient, attempt: DeliveryAttempt, requests: int) -> None:
        """Request a delivery again, and record that. Raise `ApiUnavailable`."""
        connection = self.claimed.connection
        status, reason = attempt.status, None
        try:
            await client.run(self.log.redeliver(self.place, self.webhook, attempt.id))
        except ApiRefused as error:
            status = reason = str(error)
        self.left -= 1
        self.is_to_be_repeated = True
        REDELIVERIES_REQUESTED.labels(connection.provider).inc()
        log.info(
            "failed delivery requested again",
            connection=connection.id,
            provider_delivery_id=attempt.guid,
            webhook_event=attempt.event,
            status=attempt.status,
            request=requests + 1,
            refused=reason,
        )
        requested = Requested(
            guid=attempt.guid,
            event=attempt.event,
            status=status,
            requests=requests + 1,
            requested_at=self.clock(),
        )
        await self.database.write(redeliveries.record, connection.id, requested)

    async def _give_up(self, attempt: DeliveryAttempt, before: Requested) -> None:
        """Record that a delivery is not requested any more."""
        connection = self.claimed.connection
        REDELIVERIES_FAILED.labels(connection.provider).inc()
        log.warning(
            "a delivery fails each time it is requested: it is given up",
            connection=connection.id,
            provider_delivery_id=attempt.guid,
            webhook_event=attempt.event,
            status=attempt.status,
            requests=before.requests,
        )
        requested = replace(before, status=attempt.status, is_given_up=True)
        await self.database.write(redeliveries.record, connection.id, requested)

    async def _interrupt(self, next_at: datetime) -> None:
        await self.database.write(redeliveries.interrupt, self.claimed, self.progress, next_at=next_at)

    async def _finish(self) -> None:
        now = self.clock()
        every = EVERY if self.place.scope == "repository" else _EVERY_OF_SOURCE
        rarely = every * random.uniform(0.9, 1.1)  # noqa: S311 - spreads the load
        await self.database.write(
            redeliveries.finish,
            self.claimed,
            since=self.progress.began_at - _OVERLAP,
            now=now,
            next_at=now + (_RESULT_AFTER if self.is_to_be_repeated else rarely),
        )
