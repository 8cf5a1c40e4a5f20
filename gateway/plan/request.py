"""The execution request: the message to the runners. This is a contract with other teams.

Fields are added, never taken away or given another meaning; a breaking change is a new type, `….v2`. The
JSON Schema made of these models is in docs/execution-request.schema.json and at the gateway's
/schemas/execution-request.json.
"""

import json
import uuid
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

TYPE = "dev.pushgate.execution.requested.v1"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "pushgate.dev")

ParameterValue = str | int | float | bool | list[str | int | float | bool]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Repository(_Part):
    """Where the commit comes from."""

    provider: str = Field(description="github, gitlab, ... as the connection names it")
    id: str | None = Field(description="the provider's own id of the repository, once it is known")
    name: str | None = Field(description="the full name, such as owner/name, as the provider told it")
    url: str = Field(description="the clone URL of the connection, without credentials")


class Ref(_Part):
    """The branch or tag that moved."""

    name: str = Field(description="the short name, such as main or v1.0")
    kind: Literal["branch", "tag"]


class Commit(_Part):
    """The one commit to be executed."""

    id: str = Field(description="the full object id, 40 or 64 hex digits")
    before: str | None = Field(description="where the ref was before; null for a new one")
    author: str = Field(description="name and address of the author, as git has it")
    message: str
    committed_at: datetime
    url: str | None = Field(description="a page about the commit, to look at; never to fetch from")


class StepExecution(_Part):
    """A step as the commit's valohai.yaml defines it, with the trigger's parameters and inputs in place."""

    kind: Literal["step"] = "step"
    name: str
    image: str = Field(description="the container image")
    command: list[str] = Field(description="shell commands, with the parameters filled in")
    parameters: dict[str, ParameterValue] = Field(description="every parameter that has a value")
    inputs: dict[str, list[str]] = Field(description="the URLs of each input")
    environment: str | None = Field(description="where to run, by the platform's name for it")
    environment_variables: dict[str, str] = Field(description="plain values; secrets stay with the platform")
    environment_variable_groups: list[str]
    time_limit: float | None = Field(description="seconds")
    no_output_timeout: float | None = Field(description="seconds")
    definition: dict[str, Any] = Field(description="the whole step, as valohai.yaml writes it")


class ExecutionRequest(_Part):
    """One step, at one commit."""

    model_config = ConfigDict(frozen=True, title="ExecutionRequest")

    id: str = Field(description="the same in every repetition of this request: drop what you have seen")
    project: str = Field(description="the platform's project")
    connection: str = Field(description="the id of the connection in Pushgate")
    delivery: str = Field(description="the id of the delivery in Pushgate: why this was asked for")
    repository: Repository
    ref: Ref
    commit: Commit
    pushed_by: str | None = Field(description="who pushed, as the provider says: shown, not proven")
    trigger: str = Field(description="the name of the connection's trigger")
    execution: StepExecution


def execution_id(
    *,
    connection: str,
    ref: str,
    generation: int,
    before: str | None,
    after: str | None,
    trigger: str,
) -> str:
    """Return the id of the request that a trigger makes of one move of a ref: always the same.

    `generation` counts the moves of the ref, so that A→B, B→A, A→B are three. The JSON list keeps apart
    what plain joining would let run together.
    """
    facts = json.dumps([connection, ref, generation, before, after, trigger])
    return str(uuid.uuid5(_NAMESPACE, facts))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the message's body."""
    made = ExecutionRequest.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"https://pushgate.dev/schemas/{TYPE}.json",
        **made,
    }
