"""The names in the wire contract: message types, schemas, events, lanes, and the words of routing keys."""

from typing import Annotated, Literal

from pydantic import StringConstraints

EventName = Literal["push.fetched", "delivery.failed"]
"""The events that can be published beside execution requests."""

EXECUTION_REQUESTED = "execution.requested"
EXECUTION_REQUEST_SCHEMA = "execution-request"
EXECUTION_REQUEST_VERSION = "1.3"
"""The schema's version: each field that is added increments the second number."""

EXECUTION_STATUS = "execution.status"
EXECUTION_STATUS_SCHEMA = "execution-status"
EXECUTION_STATUS_VERSION = "1.0"
"""The version of the schema of reports: each field that is added increments the second number."""

EXECUTION_CANCELLED = "execution.cancelled"
"""The message that cancels an execution, in the outbox of events; no setting turns it off."""

EVENT_VERSION = "1.0"
"""The version of the events' schemas: each field that is added increments the second number."""

LANE_PREFIX = "lane"
MAX_LANE_LENGTH = 32
Lane = Annotated[str, StringConstraints(pattern=rf"^[a-z0-9-]{{1,{MAX_LANE_LENGTH}}}$")]
"""A priority lane: a word of a routing key, and of a queue's name."""


def message_type(name: str) -> str:
    """Return the CloudEvents type of the messages with this name, such as push.fetched."""
    return f"dev.pushgate.{name}.v1"


def schema_name(name: str) -> str:
    """Return the name under which the schema of an event is stored and served."""
    return name.replace(".", "-")


def schema_id(name: str, version: str) -> str:
    """Return the `$id` of a schema, which is the `dataschema` of its messages."""
    return f"https://pushgate.dev/schemas/{name}-{version}.json"
