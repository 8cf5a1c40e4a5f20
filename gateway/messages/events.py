"""Events: how ref updates ended, published beside execution requests. A contract with other teams.

Fields may be added, but never removed or given another meaning; a breaking change is a new type, `….v2`. The
JSON Schemas of these models are in docs/, and the gateway serves them at /schemas/<name>.json.
"""

from typing import Any, Literal

from pydantic import ConfigDict, Field

from gateway.messages.execution_request import MergeGroup, PullRequest, Ref, Repository
from gateway.messages.names import EVENT_VERSION, EventName, schema_name
from gateway.messages.schema import Part, schema_of


class Event(Part):
    """How a ref update ended."""

    id: str = Field(description="the same in every repetition of this event: drop ids that you have seen")
    project: str = Field(description="the platform's project")
    connection: str = Field(description="the id of the connection in Pushgate")
    delivery: str = Field(description="the id of the delivery in Pushgate")
    repository: Repository = Field(description="where the ref is")
    ref: Ref = Field(description="the branch or tag that moved; for a pull request, its source branch")
    commit: str | None = Field(
        description="the full object id that the ref moved to; null if the ref was deleted"
    )
    before: str | None = Field(description="where the ref pointed before; null for a new ref")
    pull_request: PullRequest | None = Field(description="null for a push")
    merge_group: MergeGroup | None = Field(default=None, description="null unless a merge queue asked")
    pushed_by: str | None = Field(
        description="who pushed, according to the provider: for display, not verified"
    )
    requests: int = Field(description="the number of execution requests made")
    triggers: tuple[str, ...] = Field(description="the names of the triggers that made them")
    reason: str = Field(description="how it ended, in a sentence for people; do not parse it")


class PushFetched(Event):
    """A branch, a tag or a pull request has moved; its commit was fetched and planned."""

    model_config = ConfigDict(frozen=True, title="PushFetched")

    commit: str = Field(description="the full object id that was fetched")


class TriggerFailure(Part):
    """A trigger that matched the push, but made no execution request."""

    trigger: str = Field(description="the trigger's name")
    reason: str = Field(description="why it made no request, in a sentence for people; do not parse it")


class DeliveryFailed(Event):
    """A ref update has ended without some or all of its execution requests; `reason` says why."""

    model_config = ConfigDict(frozen=True, title="DeliveryFailed")

    state: Literal["failed", "gone"] = Field(
        description="gone: the remote no longer has the commit; failed: any other failure"
    )
    failures: tuple[TriggerFailure, ...] = Field(
        description="the triggers that matched but made no request, and why; empty if the commit could not be"
        " fetched or read, because then no trigger was evaluated"
    )


EVENTS: dict[EventName, type[Event]] = {"push.fetched": PushFetched, "delivery.failed": DeliveryFailed}
"""The events by name. The message type, the schema's name and the routing key derive from it."""


def event_schema(name: EventName) -> dict[str, Any]:
    """Return the JSON Schema of an event's body."""
    return schema_of(EVENTS[name], name=schema_name(name), version=EVENT_VERSION)
