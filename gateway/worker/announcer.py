"""How ref updates ended, for others: events for the broker, and verdicts for the provider."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from gateway.messages.events import TriggerFailure
from gateway.plan.outcome import event, event_name
from gateway.store.connections import Connection
from gateway.store.events import NewEvent
from gateway.store.work_queue import Settlement
from gateway.worker.plan_inputs import connection_facts, update_facts
from gateway.worker.verdicts import expected


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcer:
    """Adds the verdicts on their commits to settlements, and the events of the given names."""

    names: Collection[str]

    def __call__(self, connection: Connection, settlement: Settlement) -> Settlement:
        """Return the settlement with its verdicts and its event, if the connection has any."""
        has_receiver = connection.identity is not None or connection.has_status_webhook
        if connection.statuses and has_receiver:
            settlement = replace(settlement, statuses=expected(connection, settlement))
        name = event_name(settlement.state, settlement.update.after)
        if name is None or name not in self.names:
            return settlement
        message = event(
            name,
            connection=connection_facts(connection, settlement.update),
            update=update_facts(settlement.update),
            state=settlement.state,
            reason=settlement.reason,
            triggers=tuple(request.trigger for request in settlement.requests),
            failures=tuple(
                TriggerFailure(trigger=verdict["trigger"], reason=verdict["failure"])
                for verdict in settlement.verdicts
                if verdict.get("failure") is not None
            ),
        )
        repository = message.repository.name or message.repository.url
        new = NewEvent(
            id=message.id,
            connection=message.connection,
            delivery=message.delivery,
            name=name,
            project=message.project,
            subject=f"{repository}@{message.commit or message.ref.name}",
            body=message.model_dump_json().encode(),
        )
        return replace(settlement, events=(new,))
