"""What pages of the dashboard show besides the answers of the REST API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy

from gateway.api.views import DeliveryView, ExplainedExecutionView, ExplainedView, UpdateView
from gateway.store import deliveries, refusals

# How many of the newest deliveries and executions the overview shows.
_MAX_NEWEST = 10
# How many ref updates the page of a delivery shows.
_MAX_UPDATES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A delivery as its page shows it: its first ref updates, and how many `more` it has.

    `requests` maps the id of a ref update to its execution requests.
    """

    delivery: ExplainedView
    updates: Sequence[UpdateView]
    more: int
    requests: Mapping[int, Sequence[ExplainedExecutionView]]

    @classmethod
    def of(cls, delivery: ExplainedView) -> "Explanation":
        """Group the execution requests by ref update."""
        requests: dict[int, list[ExplainedExecutionView]] = {}
        for execution in delivery.executions:
            requests.setdefault(execution.ref_update, []).append(execution)
        updates = delivery.updates[:_MAX_UPDATES]
        return cls(
            delivery=delivery, updates=updates, more=len(delivery.updates) - len(updates), requests=requests
        )

    @property
    def is_unfinished(self) -> bool:
        """Whether a ref update or an execution request is pending, or a run that was reported goes on."""
        updates = {update.state for update in self.delivery.updates}
        shown = updates | {execution.state for execution in self.delivery.executions}
        return bool(shown & {"pending", "accepted", "running"})

    @property
    def can_be_replayed(self) -> bool:
        """Whether a replay would plan anything."""
        has_ended = any(update.state in deliveries.REPLAYABLE for update in self.delivery.updates)
        return has_ended and not self.delivery.is_orphan


def newest(conn: sqlalchemy.Connection, connection: str | None) -> list[DeliveryView]:
    """Return the newest deliveries, of one connection or of all."""
    found = deliveries.page(conn, connection=connection, verdict=None, before=None, limit=_MAX_NEWEST)
    return [DeliveryView.of(delivery) for delivery in found]


def refused(conn: sqlalchemy.Connection, connection: str) -> list[DeliveryView]:
    """Return the newest refused requests of a connection."""
    found = refusals.page(conn, connection=connection, before=None, limit=_MAX_NEWEST)
    return [DeliveryView.of(refusal) for refusal in found]
