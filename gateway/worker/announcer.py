"""Events about how ref updates ended."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from gateway.plan.outcome import event, event_name
from gateway.store.connections import Connection
from gateway.store.events import NewEvent
from gateway.store.work_queue import Settlement
from gateway.worker.plan_inputs import connection_facts, update_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcer:
    """Says what is told of how a ref update ended: the events of these names, and no others."""

    names: Collection[str]

    def __call__(self, connection: Connection, settlement: Settlement) -> Settlement:
        """Return the settlement with its event, if it has one that somebody asked for."""
        name = event_name(settlement.state, settlement.update.after)
        if name is None or name not in self.names:
            return settlement
        made = event(
            name,
            connection=connection_facts(connection, settlement.update),
            update=update_facts(settlement.update),
            state=settlement.state,
            reason=settlement.reason,
            triggers=tuple(request.trigger for request in settlement.requests),
        )
        told = NewEvent(
            id=made.id,
            connection=made.connection,
            delivery=made.delivery,
            name=name,
            project=made.project,
            subject=f"{made.repository.name or made.repository.url}@{made.commit or made.ref.name}",
            body=made.model_dump_json().encode(),
        )
        return replace(settlement, events=(told,))
