"""The event that reports how a ref update ended."""

import json
import uuid
from typing import Any

from gateway.messages.events import EVENTS, Event, TriggerFailure
from gateway.messages.names import EventName
from gateway.plan.planner import (
    ConnectionFacts,
    UpdateFacts,
    merge_group_of,
    pull_request_of,
    ref_of,
    repository_of,
)

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "events.pushgate.dev")


def event_name(state: str, commit: str | None) -> EventName | None:
    """Return the name of the event for an outcome; None for a deleted ref."""
    if state in {"failed", "gone"}:
        return "delivery.failed"
    return "push.fetched" if commit is not None else None


def event(
    name: EventName,
    *,
    connection: ConnectionFacts,
    update: UpdateFacts,
    state: str,
    reason: str,
    triggers: tuple[str, ...],
    failures: tuple[TriggerFailure, ...] = (),
) -> Event:
    """Return the event that reports how a ref update ended; `triggers` has one name per request."""
    fields: dict[str, Any] = {
        "id": _event_id(name, connection.id, update, [reason, triggers, *_listed(failures)]),
        "project": connection.project,
        "connection": connection.id,
        "delivery": update.delivery,
        "repository": repository_of(connection),
        "ref": ref_of(update),
        "commit": update.after,
        "before": update.before,
        "pull_request": pull_request_of(update),
        "merge_group": merge_group_of(update),
        "pushed_by": update.pusher,
        "requests": len(triggers),
        "triggers": triggers,
        "reason": reason,
        "state": state,
        "failures": failures,
    }
    model = EVENTS[name]
    return model(**{field: fields[field] for field in model.model_fields})


def _listed(failures: tuple[TriggerFailure, ...]) -> list[list[tuple[str, str]]]:
    """Return failures for an event's id, which without any is what it always was."""
    return [[(failure.trigger, failure.reason) for failure in failures]] if failures else []


def _event_id(name: EventName, connection: str, update: UpdateFacts, outcome: list[Any]) -> str:
    """Return an id that depends on the move and on its outcome, because a replan may end differently."""
    move = [connection, update.ref, update.generation, update.before, update.after]
    return str(uuid.uuid5(_NAMESPACE, json.dumps([name, *move, *outcome])))
