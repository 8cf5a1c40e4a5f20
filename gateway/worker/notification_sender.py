"""Sends the notifications of each channel, in batches."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog

from gateway.backoff import backoff
from gateway.crypto.keyring import Keyring
from gateway.metrics import NOTIFICATIONS
from gateway.provider_apis import standard_webhook
from gateway.provider_apis.apis import ProviderApis
from gateway.provider_apis.operation import ApiLimited, ApiRefused, ApiUnavailable
from gateway.provider_apis.posting import Message, Sender, origin, post
from gateway.store import notifications
from gateway.store.database import Database
from gateway.store.notification_channels import Address
from gateway.store.notifications import Batch
from gateway.store.notify import Waiter
from gateway.worker.mail import MailServer, send_mail
from gateway.worker.notification_texts import AS_JSON, as_mail
from gateway.worker.polling import PAUSE_SECONDS, claim_if_due, poll, work_on

log = structlog.get_logger()

# Longer than all time limits of a mail together.
_LEASE = timedelta(minutes=5)
_FIRST_DELAY = 15.0
_MAX_DELAY = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationSender:
    """Sends the messages that are due. Any number of processes may do so side by side."""

    database: Database
    keyring: Keyring
    wakeups: Waiter
    apis: ProviderApis

    async def run(self) -> None:
        """Send until cancelled. Record refusals, and retry what may pass."""
        failure = "sending notifications failed"
        await poll(self.send_next, wakeups=self.wakeups, failure=failure, pause=PAUSE_SECONDS)

    async def send_next(self) -> bool:
        """Send the next message that is due; return whether one was."""
        claim = claim_if_due(
            self.database, notifications.is_due, notifications.claim, lease=_LEASE, keyring=self.keyring
        )
        return await work_on(claim, self._send, self._give_back)

    async def _give_back(self, batch: Batch) -> None:
        await self.database.write(notifications.give_back, batch, now=_now())

    async def _send(self, batch: Batch) -> None:
        """Send a message and record how that ended."""
        address = batch.address
        if address is None:
            await self._refused(batch, batch.obstacle or "")
            return
        try:
            await self._deliver(batch, address)
        except ApiRefused as error:
            await self._refused(batch, str(error))
        except ApiUnavailable as error:
            await self._failed(batch, error)
        else:
            self._count(batch, "sent")
            await self.database.write(notifications.record_sent, batch, now=_now())

    async def _deliver(self, batch: Batch, address: Address) -> None:
        """Send a message. Raise `ApiError`."""
        channel, now = batch.channel, _now()
        if channel.kind == "smtp":
            settings = dict(channel.settings)
            sender, recipients = settings.pop("sender"), settings.pop("recipients")
            mail = as_mail(batch.bodies, sender=sender, recipients=recipients, message_id=batch.id, now=now)
            await send_mail(mail, MailServer(**settings, password=address.password), self.apis.connector)
            return
        body = AS_JSON[channel.kind](batch.bodies)
        if channel.kind == "webhook":
            operation = standard_webhook.send(
                url=address.url, secret=address.secret, id=batch.id, body=body, now=now
            )
        else:
            headers = {"Content-Type": "application/json"}
            operation = post(Message(url=address.url, content=body, headers=headers))
        identity = Sender(name=f"the notification channel {channel.name}")
        await self.apis.run(operation, base_url=origin(address.url), identity=identity)

    async def _refused(self, batch: Batch, problem: str) -> None:
        """Record a refusal that no retry would change: the message is given up."""
        self._count(batch, "refused")
        log.warning("a notification is refused", channel=batch.channel.name, reason=problem)
        await self.database.write(notifications.record_sent, batch, problem=problem, now=_now())

    async def _failed(self, batch: Batch, error: ApiUnavailable) -> None:
        """Send the message later."""
        delay = backoff(batch.attempts, first=_FIRST_DELAY, longest=_MAX_DELAY)
        if isinstance(error, ApiLimited):
            delay = max(delay, error.seconds)
        self._count(batch, "postponed")
        log.info(
            "a notification is sent later",
            channel=batch.channel.name,
            reason=str(error),
            next_try_in_s=round(delay),
        )
        now = _now()
        next_at = now + timedelta(seconds=delay)
        await self.database.write(notifications.record_failed, batch, str(error), next_at=next_at, now=now)

    def _count(self, batch: Batch, outcome: str) -> None:
        NOTIFICATIONS.labels(batch.channel.kind, outcome).inc()


def _now() -> datetime:
    return datetime.now(UTC)
