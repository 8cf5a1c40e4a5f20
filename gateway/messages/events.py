"""Events: what is told of how ref updates ended, beside execution requests. A contract with other teams.

Fields are added, never taken away or given another meaning; a breaking change is a new type, `….v2`. The
JSON Schemas made of these models are in docs/ and at the gateway's /schemas/<name>.json.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from gateway.messages.execution_request import MergeGroup, Part, PullRequest, Ref, Repository, schema_of
from gateway.messages.names import EVENT_VERSION, EventName, message_type


class Event(Part):
    """How a ref update ended."""

    id: str = Field(description="the same in every repetition of this event: drop what you have seen")
    project: str = Field(description="the platform's project")
    connection: str = Field(description="the id of the connection in Pushgate")
    delivery: str = Field(description="the id of the delivery in Pushgate")
    repository: Repository
    ref: Ref
    commit: str | None = Field(description="the full object id that the ref moved to; null: it was deleted")
    before: str | None = Field(description="where the ref was before; null for a new one")
    pull_request: PullRequest | None = Field(description="null for a push")
    merge_group: MergeGroup | None = Field(default=None, description="null for all but a merge queue's")
    pushed_by: str | None = Field(description="who pushed, as the provider says: shown, not proven")
    requests: int = Field(description="how many execution requests came of it")
    triggers: tuple[str, ...] = Field(description="the names of the triggers that asked for them")
    reason: str = Field(description="how it ended, in a sentence for people; not to be parsed")


class PushFetched(Event):
    """A branch, a tag or a pull request has moved; its commit was fetched and planned."""

    model_config = ConfigDict(frozen=True, title="PushFetched")

    commit: str = Field(description="the full object id that was fetched")


class DeliveryFailed(Event):
    """A ref update has ended without all that its triggers asked for: the reason tells why."""

    model_config = ConfigDict(frozen=True, title="DeliveryFailed")

    state: Literal["failed", "gone"] = Field(
        description="gone: the remote no longer has the commit; failed: everything else, being given up too"
    )


EVENTS: dict[EventName, type[Event]] = {"push.fetched": PushFetched, "delivery.failed": DeliveryFailed}
"""The events by name: the type, the schema and the routing key are made of it."""


def event_schema(name: EventName) -> dict[str, Any]:
    """Return the JSON Schema of an event's body."""
    return schema_of(EVENTS[name], message_type=message_type(name), version=EVENT_VERSION)
