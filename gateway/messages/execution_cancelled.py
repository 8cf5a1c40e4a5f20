"""The cancellation: the message that tells runners to stop an execution. This is a contract with other teams.

Fields may be added, but never removed or given another meaning; a breaking change is a new type, `….v2`. The
JSON Schema of this model is in docs/execution-cancelled.schema.json, and the gateway serves it at
/schemas/execution-cancelled.json.
"""

import json
import uuid
from typing import Any

from pydantic import AwareDatetime, ConfigDict, Field

from gateway.messages.names import EVENT_VERSION, EXECUTION_CANCELLED, schema_name
from gateway.messages.schema import Part, schema_of

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "cancelled.pushgate.dev")


class ExecutionCancelled(Part):
    """An operator has cancelled an execution that was published."""

    model_config = ConfigDict(frozen=True, title="ExecutionCancelled")

    id: str = Field(description="the same in every repetition of this message: drop ids that you have seen")
    execution: str = Field(description="the id of the execution request")
    redrive: int = Field(
        description="the redrive of the request that is cancelled, 0 for its first message: a message with a"
        " higher redrive is a later order, and is not cancelled"
    )
    project: str = Field(description="the platform's project")
    connection: str = Field(description="the id of the connection in Pushgate")
    delivery: str = Field(description="the id of the delivery in Pushgate that caused the request")
    trigger: str = Field(description="the name of the connection's trigger")
    requested_at: AwareDatetime = Field(description="when the operator cancelled it, in UTC")


def cancel_id(execution: str, redrive: int) -> str:
    """Return the id of the message that cancels a request."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps([execution, redrive])))


def cancelled_schema() -> dict[str, Any]:
    """Return the JSON Schema of the message's body."""
    return schema_of(ExecutionCancelled, name=schema_name(EXECUTION_CANCELLED), version=EVENT_VERSION)
