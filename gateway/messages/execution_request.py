"""The execution request: the message to the runners. This is a contract with other teams.

Fields may be added, but never removed or given another meaning; a breaking change is a new type, `….v2`. The
JSON Schema of these models is in docs/execution-request.schema.json, and the gateway serves it at
/schemas/execution-request.json.
"""

import json
import uuid
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gateway.messages.names import EXECUTION_REQUEST_VERSION, EXECUTION_REQUESTED, message_type

TYPE = message_type(EXECUTION_REQUESTED)

MAX_REQUEST_BYTES = 2 * 1024 * 1024
"""The limit of a message's body. RabbitMQ 4 refuses messages over 16 MiB, and earlier versions slow down."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "pushgate.dev")

ParameterValue = str | int | float | bool | list[str | int | float | bool]


class Part(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(frozen=True)


class Repository(Part):
    """Where the commit comes from."""

    provider: str = Field(description="such as github or gitlab, as in the connection")
    id: str | None = Field(description="the provider's id of the repository, once it is known")
    name: str | None = Field(description="the full name, such as owner/name, from the provider's payload")
    url: str = Field(description="the clone URL of the connection, without credentials")


class Ref(Part):
    """The branch or tag that moved."""

    name: str = Field(description="the short name, such as main or v1.0")
    kind: Literal["branch", "tag"] = Field(description="what moved")


class Commit(Part):
    """The commit to execute."""

    id: str = Field(description="the full object id, 40 or 64 hex digits")
    before: str | None = Field(description="where the ref pointed before; null for a new ref")
    author: str = Field(description="name and email address of the author, from git")
    message: str = Field(description="the whole message")
    committed_at: AwareDatetime = Field(description="when it was committed, in UTC")
    url: str | None = Field(description="a web page about the commit; do not fetch from it")
    signature: Literal["valid", "unknown", "none"] | None = Field(
        default=None, description="valid if made by one of the operator's allowed signers"
    )


class PullRequest(Part):
    """The pull or merge request whose head the commit is."""

    number: str = Field(description="the provider's number for it")
    source: str = Field(description="the short name of the source branch")
    target: str = Field(description="the short name of the target branch")
    from_fork: bool | None = Field(description="whether the source is in another repository; null: unknown")


class MergeGroup(Part):
    """A group of the merge queue; `ref` is its own branch, and `commit.before` the commit it is based on."""

    base: str = Field(description="the branch into which it will be merged")


class StepExecution(Part):
    """A step as the commit's valohai.yaml defines it, with the trigger's parameters and inputs applied."""

    kind: Literal["step"] = "step"
    name: str = Field(description="the step's name")
    image: str = Field(description="the container image")
    command: tuple[str, ...] = Field(description="shell commands, with the parameters filled in")
    parameters: dict[str, ParameterValue] = Field(description="every parameter that has a value")
    inputs: dict[str, tuple[str, ...]] = Field(description="the URLs of each input")
    outputs: tuple[dict[str, Any], ...] = Field(description="the declared outputs: name, description")
    environment: str | None = Field(description="the platform's name of the environment to run in")
    environment_variables: dict[str, str] = Field(description="plain values; secrets stay with the platform")
    environment_variable_groups: tuple[str, ...] = Field(description="groups of variables, by name")
    mounts: tuple[dict[str, Any], ...] = Field(description="source, destination, readonly, type, options")
    cache_volumes: tuple[str, ...] = Field(description="Kubernetes persistent volume claims for inputs")
    resources: dict[str, Any] = Field(description="cpu and memory with min and max, devices with numbers")
    runtime_config_preset: str | None = Field(description="id or slug of the platform's preset")
    upload_store: str | None = Field(description="the data store for outputs, by name or UUID")
    autorestart: bool | None = Field(description="whether to restart after a spot instance is reclaimed")
    stop_condition: str | None = Field(description="an expression over metadata that ends the execution")
    time_limit: float | None = Field(description="seconds; null for no limit")
    no_output_timeout: float | None = Field(
        description="seconds without output; null for the platform's default"
    )
    source_path: str | None = Field(description="the source file from which the step was generated")
    definition: dict[str, Any] = Field(description="the whole step, as valohai.yaml writes it")


class PipelineExecution(Part):
    """A pipeline as the commit's valohai.yaml defines it, converted as the platform's own clients do it.

    Nodes hold templates of executions: their commands are not filled in yet, because edges can supply values.
    """

    kind: Literal["pipeline"] = "pipeline"
    name: str = Field(description="the pipeline's name")
    nodes: tuple[dict[str, Any], ...] = Field(description="name, type, template, actions, ... of each node")
    edges: tuple[dict[str, Any], ...] = Field(description="source and target: node, type and key of each")
    parameters: dict[str, dict[str, Any]] = Field(description="config and expression of each parameter")
    reuse_executions: bool = Field(description="whether results of unchanged nodes may be reused")
    definition: dict[str, Any] = Field(description="the whole pipeline, as valohai.yaml writes it")


class TaskExecution(Part):
    """A task as the commit's valohai.yaml defines it: one step, executed with many sets of parameters."""

    kind: Literal["task"] = "task"
    name: str = Field(description="the task's name")
    type: str = Field(description="grid_search, random_search, bayesian_tpe, distributed, manual_search")
    step: StepExecution = Field(description="the step, with the values that all executions share")
    parameters: dict[str, dict[str, Any]] = Field(description="style and rules of each parameter that varies")
    parameter_sets: tuple[dict[str, Any], ...] = Field(description="the sets of a manual search")
    definition: dict[str, Any] = Field(description="the whole task, as valohai.yaml writes it")


class Package(Part):
    """The tree of the commit as an archive, without the files that .vhignore excludes."""

    id: str = Field(description="the SHA-256 of the uncompressed tar")
    url: str = Field(description="where to download it")
    expires_at: AwareDatetime = Field(
        description="until when the URL is valid, in UTC; republish the request for another"
    )
    sha256: str = Field(description="of the file at the URL, 64 hex digits: compare before unpacking")
    size: int = Field(description="bytes of the file at the URL")
    format: str = Field(description="such as tar.gz")
    rebuilt: bool = Field(
        default=False,
        description="whether the file was built again after the request was planned: its bytes, `sha256` and"
        " `size`, may be others than before, and `id` is the same",
    )


class Submodule(Part):
    """A submodule that is part of the package."""

    path: str = Field(description="its path in the tree")
    url: str = Field(description="its clone URL, without credentials")
    commit: str = Field(description="the full object id")


class ExecutionRequest(Part):
    """One step, pipeline or task, at one commit."""

    model_config = ConfigDict(frozen=True, title="ExecutionRequest")

    id: str = Field(description="the same in every repetition of this request: drop ids that you have seen")
    project: str = Field(description="the platform's project")
    connection: str = Field(description="the id of the connection in Pushgate")
    delivery: str = Field(description="the id of the delivery in Pushgate that caused this request")
    repository: Repository
    ref: Ref
    commit: Commit
    pushed_by: str | None = Field(
        description="who pushed, according to the provider: for display, not verified"
    )
    trigger: str = Field(description="the name of the connection's trigger")
    execution: Annotated[StepExecution | PipelineExecution | TaskExecution, Field(discriminator="kind")]
    package: Package | None = Field(default=None, description="the code; null if no package was built")
    submodules: tuple[Submodule, ...] = Field(default=(), description="with their commits")
    pull_request: PullRequest | None = Field(default=None, description="null for a push")
    merge_group: MergeGroup | None = Field(default=None, description="null unless a merge queue asked")


def execution_id(
    *,
    connection: str,
    ref: str,
    generation: int,
    before: str | None,
    after: str | None,
    trigger: str,
) -> str:
    """Return the id of a trigger's request for one ref update: the same facts always have the same id.

    `generation` counts the moves of the ref, so that A→B, B→A, A→B are three moves. The facts are joined as a
    JSON list, because concatenation would give `ab`, `c` and `a`, `bc` the same id.
    """
    facts = json.dumps([connection, ref, generation, before, after, trigger])
    return str(uuid.uuid5(_NAMESPACE, facts))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the message's body."""
    return schema_of(ExecutionRequest, message_type=TYPE, version=EXECUTION_REQUEST_VERSION)


def schema_of(model: type[BaseModel], *, message_type: str, version: str) -> dict[str, Any]:
    """Return the JSON Schema of the body of messages of a type."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"https://pushgate.dev/schemas/{message_type}.json",
        "version": version,
        **model.model_json_schema(mode="serialization"),
    }
