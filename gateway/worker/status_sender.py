"""Sends verdicts on commits to the providers, which show them beside the commits."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.metrics import STATUSES
from gateway.provider_apis.apis import LimitedIdentity, ProviderApis
from gateway.provider_apis.operation import ApiError, ApiLimited, ApiRefused, ApiUnavailable
from gateway.provider_apis.posting import Sender, origin
from gateway.provider_apis.sign_in import SignIn, Use, api_url
from gateway.provider_apis.status_apis import status_api
from gateway.provider_apis.status_webhook import StatusWebhook
from gateway.provider_apis.statuses import CommitStatus, StatusApi, StatusMemory
from gateway.provider_apis.webhooks import Place
from gateway.store import status_tasks
from gateway.store.database import Database, Lock
from gateway.store.leading import TAKE_OVER_SECONDS
from gateway.store.notify import Waiter
from gateway.store.status_tasks import Claimed
from gateway.worker.polling import claim_if_due, poll, work_on
from gateway.worker.verdicts import status_of

log = structlog.get_logger()

_AT_ONCE = 4
_LEASE = timedelta(minutes=2)
_FIRST_DELAY = 2.0
_MAX_DELAY = 900.0
# In which a server that fails is left alone by the other verdicts of an identity.
_LONGEST_PAUSE = 10.0
# About a day.
_MAX_TRIES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSender:
    """Sends the verdicts that are due. One process leads, so that the limits of the providers are kept.

    `subscribe` returns what wakes a task. The pages of deliveries begin with `base_url`.
    """

    database: Database
    keyring: Keyring
    subscribe: Callable[[], Waiter]
    apis: ProviderApis
    sign_in: SignIn
    base_url: str
    _claiming: asyncio.Lock = field(default_factory=asyncio.Lock)
    # One verdict of a connection at a time: its context could otherwise end with the older of two.
    _busy: set[str] = field(default_factory=set)

    async def run(self) -> None:
        """Send until cancelled. Record refusals, and retry what may pass."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_AT_ONCE):
                failure = "sending a verdict failed"
                tasks.create_task(poll(self._send_next, wakeups=self.subscribe(), failure=failure))

    async def _send_next(self) -> bool:
        return await work_on(self._claim(), self._send, self._give_back)

    async def _claim(self) -> Claimed | None:
        async with self._claiming:
            if not await self.database.is_leader(Lock.STATUSES, for_seconds=TAKE_OVER_SECONDS):
                return None
            claimed = await claim_if_due(
                self.database,
                status_tasks.is_due,
                status_tasks.claim,
                lease=_LEASE,
                keyring=self.keyring,
                without=frozenset(self._busy),
            )
            if claimed is not None:
                self._busy.add(claimed.connection.id)
            return claimed

    async def _give_back(self, claimed: Claimed) -> None:
        self._busy.discard(claimed.connection.id)
        await self.database.write(status_tasks.give_back, claimed, now=_now())

    async def _send(self, claimed: Claimed) -> None:
        try:
            await self._show(claimed)
        finally:
            self._busy.discard(claimed.connection.id)

    async def _show(self, claimed: Claimed) -> None:
        """Send a verdict, unless the provider has it already."""
        status = status_of(claimed.verdict, base_url=self.base_url)
        if claimed.obstacle is not None:
            await self.database.write(
                status_tasks.record_refused, claimed, claimed.sent, claimed.obstacle, now=_now()
            )
            return
        target = self._target(claimed)
        sent = None if target is None else _key(target.api, status)
        if target is None or sent is None or sent == claimed.sent:
            await self.database.write(status_tasks.record_unchanged, claimed)
            return
        try:
            memory = await self._set(claimed, target, status)
        except ApiRefused as error:
            await self._refused(claimed, sent, error)
        except ApiUnavailable as error:
            await self._failed(claimed, sent, error)
        else:
            STATUSES.labels(claimed.connection.provider, "sent").inc()
            log.info(
                "verdict sent",
                connection=claimed.connection.id,
                commit=status.commit,
                context=status.context,
                state=status.state,
            )
            await self.database.write(status_tasks.record_sent, claimed, sent, memory, now=_now())

    def _target(self, claimed: Claimed) -> "_Target | None":
        """Return where a verdict is sent; None if its provider has no API for statuses."""
        connection, receiver, identity = claimed.connection, claimed.receiver, claimed.identity
        if receiver is not None:
            webhook = StatusWebhook(
                url=receiver.url,
                secret=receiver.secret,
                connection=connection.id,
                project=connection.project,
                clock=_now,
            )
            name = f"the status webhook of {connection.id}"
            return _Target(api=webhook, base_url=origin(receiver.url), identity=Sender(name=name))
        place = Place(connection.url)
        api = None if identity is None else status_api(connection.provider, identity.identity.kind)
        if identity is None or api is None:
            return None
        return _Target(
            api=api,
            base_url=api_url(identity.identity, place),
            identity=self.sign_in.identity(identity, Use(place, "statuses")),
        )

    async def _set(self, claimed: Claimed, target: "_Target", status: CommitStatus) -> StatusMemory:
        """Set a status, and return what the next one must know of it. Raise `ApiError`."""
        running = target.api.set_status(Place(claimed.connection.url), status, claimed.memory)
        return await self.apis.run(running, base_url=target.base_url, identity=target.identity)

    async def _refused(self, claimed: Claimed, sent: str, error: ApiError) -> None:
        """Record a refusal that no retry would change."""
        STATUSES.labels(claimed.connection.provider, "refused").inc()
        log.warning(
            "the provider refuses a verdict",
            connection=claimed.connection.id,
            commit=claimed.verdict.commit,
            context=claimed.verdict.context,
            reason=str(error),
        )
        await self.database.write(status_tasks.record_refused, claimed, sent, str(error), now=_now())

    async def _failed(self, claimed: Claimed, sent: str, error: ApiUnavailable) -> None:
        """Send the verdict later, or give up after about a day."""
        if claimed.attempts >= _MAX_TRIES:
            await self._refused(claimed, sent, error)
            return
        delay = backoff(claimed.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
        # A server may fail at one commit alone, which must not delay the others for long.
        pause = min(delay, _LONGEST_PAUSE)
        if isinstance(error, ApiLimited):
            delay = pause = math.ceil(error.seconds)
        STATUSES.labels(claimed.connection.provider, "postponed").inc()
        log.info(
            "a verdict is sent later",
            connection=claimed.connection.id,
            commit=claimed.verdict.commit,
            context=claimed.verdict.context,
            reason=str(error),
            next_try_in_s=round(delay),
        )
        now = _now()
        await self.database.write(
            status_tasks.postpone,
            claimed,
            str(error),
            next_at=now + timedelta(seconds=delay),
            others_at=now + timedelta(seconds=pause),
            now=now,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Where a verdict is sent, and as whom."""

    api: StatusApi
    base_url: str
    identity: LimitedIdentity


def _key(api: StatusApi, status: CommitStatus) -> str:
    """Return what distinguishes the statuses of a context that a provider shows differently."""
    return f"{api.STATES[status.state]}{status_tasks.SEPARATOR}{status.execution or status.description}"


def _now() -> datetime:
    return datetime.now(UTC)
