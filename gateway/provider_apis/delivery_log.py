"""What providers have in common that keep a log of a webhook's deliveries, and send one again on request."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from gateway.provider_apis.operation import Operation
from gateway.provider_apis.webhooks import Place, Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAttempt:
    """An attempt to deliver an event.

    `id` is the attempt's own. All attempts to deliver an event have the same `guid`, which is stored
    with the delivery. `event` is in the words of `EVENTS`. `at` is None if the provider does not show it.
    """

    id: str
    guid: str
    event: str
    at: datetime | None
    status: str
    has_succeeded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """Attempts, the newest first, and where the next page begins; None after the last page."""

    attempts: Sequence[DeliveryAttempt]
    next: str | None


class DeliveryLog(Protocol):
    """The functions of a provider's module that has a log. Every function is pure."""

    EVENTS: frozenset[str]
    """The events that Pushgate needs, in the provider's words."""

    LOG_SCOPES: frozenset[Scope]
    """The scopes of webhooks that have a log."""

    LOG_KEPT: timedelta
    """How long the provider keeps the log."""

    REDELIVERIES_A_MINUTE: int
    """How many redeliveries of one webhook may be requested in a minute."""

    def delivery_log(self, place: Place, webhook_id: str, start: str | None) -> Operation[LogPage]:
        """Return a page of the log of a webhook, without the bodies: the first, or where another ended.

        Where the API can leave out the deliveries that succeeded, it does.
        """

    def redeliver(self, place: Place, webhook_id: str, attempt_id: str) -> Operation[None]:
        """Request another attempt to deliver the event, with the same body and the same `guid`."""
