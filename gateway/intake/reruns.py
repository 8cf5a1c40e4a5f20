"""Executes again what somebody requests at the provider, as with GitHub's button Re-run."""

from collections.abc import Callable
from dataclasses import replace

from gateway.store import requested_reruns
from gateway.store.accept import NewDelivery
from gateway.store.database import Database
from providers.model import Rerun

_MAX_REASON = 1000


class Reruns:
    """Executes again what deliveries request."""

    def __init__(self, database: Database, *, notify: Callable[[], None]) -> None:
        """Call `notify` after requests have been added to the outbox."""
        self._database = database
        self._notify = notify

    async def carry_out(self, delivery: NewDelivery, wanted: Rerun) -> NewDelivery:
        """Do what a delivery requests; return it with the outcome. Raises `StoreUnavailable`.

        A delivery that is sent again changes nothing: its id is the key of its re-runs.
        """
        outcome = await self._database.write(
            requested_reruns.carry_out,
            delivery.connection,
            wanted,
            delivery=delivery.provider_delivery_id,
            now=delivery.received_at,
        )
        if outcome.is_done:
            self._notify()
        return replace(
            delivery,
            verdict="accepted" if outcome.is_done else "ignored",
            reason=outcome.reason[:_MAX_REASON],
        )
