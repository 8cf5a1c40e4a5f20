"""Sends verdicts on commits to the providers, which show them beside the commits."""

import asyncio
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from urllib.parse import urlsplit

import structlog
from opentelemetry.trace import SpanKind

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.errors import StoreUnavailable
from gateway.metrics import STATUSES
from gateway.provider_apis.apis import LimitedIdentity, ProviderApis
from gateway.provider_apis.operation import ApiError, ApiLimited, ApiRefused, ApiUnavailable
from gateway.provider_apis.posting import Sender, origin
from gateway.provider_apis.sign_in import SignIn, Use, api_url, utc_now
from gateway.provider_apis.status_apis import status_api
from gateway.provider_apis.status_webhook import StatusWebhook
from gateway.provider_apis.statuses import CommitStatus, StatusApi, StatusMemory
from gateway.provider_apis.webhooks import Place
from gateway.store import status_tasks
from gateway.store.database import Database, Lock
from gateway.store.leading import TAKE_OVER_SECONDS
from gateway.store.notify import Waiter
from gateway.store.status_tasks import Claimed
from gateway.tracing import attributes
from gateway.tracing.ids import span_of_message
from gateway.tracing.spans import SpanIds, traced
from gateway.worker.pauses import Pauses
from gateway.worker.polling import claim_if_due, poll, work_on
from gateway.worker.verdicts import status_of

log = structlog.get_logger()

_AT_ONCE = 4
_LEASE = timedelta(minutes=2)
_FIRST_DELAY = 2.0
_MAX_DELAY = 900.0
# About a day.
_MAX_TRIES = 100
# Of all requests for a verdict. A server may send its answer slowly, and the lease must not end meanwhile.
_LONGEST_SECONDS = 60.0


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
    clock: Callable[[], datetime] = utc_now
    pauses: Pauses = field(default_factory=Pauses)
    _claiming: asyncio.Lock = field(default_factory=asyncio.Lock)
    # One verdict of a connection at a time: its context could otherwise end with the older of two.
    _busy: dict[str, Claimed] = field(default_factory=dict)

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
            but = self.pauses.excluded(self._busy.values())
            claimed = await claim_if_due(
                self.database,
                partial(status_tasks.is_due, but=but),
                status_tasks.claim,
                lease=_LEASE,
                at=self.clock(),
                keyring=self.keyring,
                but=but,
            )
            if claimed is not None:
                self._busy[claimed.connection.id] = claimed
            return claimed

    async def _give_back(self, claimed: Claimed) -> None:
        self._busy.pop(claimed.connection.id, None)
        await self.database.write(status_tasks.give_back, claimed, now=self.clock())

    async def _send(self, claimed: Claimed) -> None:
        try:
            await self._show(claimed)
        finally:
            self._busy.pop(claimed.connection.id, None)

    async def _show(self, claimed: Claimed) -> None:
        """Send a verdict, unless the provider has it already."""
        status = status_of(claimed.verdict, base_url=self.base_url)
        if claimed.obstacle is not None:
            await self.database.write(
                status_tasks.record_refused, claimed, claimed.sent, claimed.obstacle, now=self.clock()
            )
            return
        target = self._target(claimed)
        if target is None or (sent := _key(target.api, status)) == claimed.sent:
            await self.database.write(status_tasks.record_unchanged, claimed)
            return
        try:
            memory = await self._set(claimed, target, status)
        except ApiRefused as error:
            self.pauses.answered(claimed)
            await self._refused(claimed, sent, error)
        except ApiLimited as error:
            await self._limited(claimed, error)
        except ApiUnavailable as error:
            self.pauses.failed(claimed)
            await self._failed(claimed, sent, error)
        else:
            self.pauses.answered(claimed)
            STATUSES.labels(claimed.connection.provider, "sent").inc()
            log.info("verdict sent", **_names(claimed), state=status.state)
            await self.database.write(status_tasks.record_sent, claimed, sent, memory, now=self.clock())

    def _target(self, claimed: Claimed) -> "_Target | None":
        """Return where a verdict is sent; None if its provider has no API for statuses."""
        connection, receiver, identity = claimed.connection, claimed.receiver, claimed.identity
        if receiver is not None:
            webhook = StatusWebhook(
                url=receiver.url,
                secret=receiver.secret,
                connection=connection.id,
                project=connection.project,
                clock=self.clock,
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
        try:
            with _sending(claimed, target):
                async with asyncio.timeout(_LONGEST_SECONDS):
                    return await self.apis.run(running, base_url=target.base_url, identity=target.identity)
        except TimeoutError:
            raise ApiUnavailable(
                f"{urlsplit(target.base_url).hostname} did not answer in time; try again later"
            ) from None
        except (ApiError, StoreUnavailable):
            raise
        except Exception as error:
            # A bug of ours is not repeated for ever.
            log.exception("setting a status failed", **_names(claimed))
            raise ApiUnavailable(f"internal error ({type(error).__name__}): see the log") from None

    async def _refused(self, claimed: Claimed, sent: str, error: ApiError) -> None:
        """Record a refusal that no retry would change."""
        STATUSES.labels(claimed.connection.provider, "refused").inc()
        log.warning("the provider refuses a verdict", **_names(claimed), reason=str(error))
        await self.database.write(status_tasks.record_refused, claimed, sent, str(error), now=self.clock())

    async def _limited(self, claimed: Claimed, error: ApiLimited) -> None:
        """Send the verdict, and the others of the identity, when the limit permits it."""
        self.pauses.limited(claimed, math.ceil(error.seconds))
        self._log_later(claimed, error, error.seconds)
        await self.database.write(status_tasks.hold, claimed, str(error), now=self.clock())

    async def _failed(self, claimed: Claimed, sent: str, error: ApiUnavailable) -> None:
        """Send the verdict later, or give up after about a day."""
        if claimed.attempts >= _MAX_TRIES:
            await self._refused(claimed, sent, error)
            return
        delay = backoff(claimed.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
        self._log_later(claimed, error, delay)
        now = self.clock()
        next_at = now + timedelta(seconds=delay)
        await self.database.write(status_tasks.postpone, claimed, str(error), next_at=next_at, now=now)

    def _log_later(self, claimed: Claimed, error: ApiUnavailable, seconds: float) -> None:
        STATUSES.labels(claimed.connection.provider, "postponed").inc()
        log.info(
            "a verdict is sent later", **_names(claimed), reason=str(error), next_try_in_s=round(seconds)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Where a verdict is sent, and as whom."""

    api: StatusApi
    base_url: str
    identity: LimitedIdentity


def _sending(claimed: Claimed, target: "_Target") -> AbstractContextManager[SpanIds]:
    """Trace that a verdict is sent: below the message of its execution, or the delivery."""
    verdict, connection = claimed.verdict, claimed.connection
    execution = verdict.execution
    about: attributes.Attributes = {}
    if execution is not None:
        about = attributes.of_execution(
            execution.id, target=execution.target, project=execution.project, trigger=execution.trigger
        )
    return traced(
        "set commit status",
        verdict.delivery,
        parent=None if execution is None else span_of_message(execution.id, execution.redrives),
        kind=SpanKind.CLIENT,
        attributes={
            **about,
            **attributes.of_repository(provider=connection.provider, url=connection.url),
            "vcs.ref.head.revision": verdict.commit,
            "server.address": urlsplit(target.base_url).hostname or "",
        },
    )


def _names(claimed: Claimed) -> dict[str, str]:
    """Return what a line of the log is about."""
    verdict = claimed.verdict
    return {"connection": claimed.connection.id, "commit": verdict.commit, "context": verdict.context}


def _key(api: StatusApi, status: CommitStatus) -> str:
    """Return what distinguishes the statuses of a context that a provider shows differently."""
    return f"{api.STATES[status.state]}{status_tasks.SEPARATOR}{status.execution or status.description}"
