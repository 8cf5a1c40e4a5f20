"""The execution request: the message to the runners. This is a contract with other teams.

Fields may be added, but never removed or given another meaning; a breaking change is a new type, `….v2`. The
JSON Schema of these models is in docs/execution-request.schema.json, and the gateway serves it at
/schemas/execution-request.json.
"""

import json
import uuid
from typing import Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field

from gateway.messages.execution import Execution
from gateway.messages.names import (
    EXECUTION_REQUEST_SCHEMA,
    EXECUTION_REQUEST_VERSION,
    EXECUTION_REQUESTED,
    message_type,
)
from gateway.messages.schema import Part, schema_of

TYPE = message_type(EXECUTION_REQUESTED)

MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""The usual limit of a message's body: RabbitMQ 4 accepts at most 16 MiB by default."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "pushgate.dev")


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
        description="whether the file was built again after the request was planned: `sha256` and `size` may"
        " be others than before; the code is the same if `id` is",
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
    repository: Repository = Field(description="where the commit comes from")
    ref: Ref = Field(description="the branch or tag that moved; for a pull request, its source branch")
    commit: Commit = Field(description="the commit to execute")
    pushed_by: str | None = Field(
        description="who pushed, according to the provider: for display, not verified"
    )
    trigger: str = Field(description="the name of the connection's trigger")
    yaml_path: str = Field(description="the path of the valohai.yaml in the package")
    execution: Execution = Field(description="the step, pipeline or task, as its `kind` says")
    package: Package | None = Field(default=None, description="the code; null if no package was built")
    submodules: tuple[Submodule, ...] = Field(default=(), description="with their commits")
    pull_request: PullRequest | None = Field(default=None, description="null for a push")
    merge_group: MergeGroup | None = Field(default=None, description="null unless a merge queue asked")
    rerun_of: str | None = Field(
        default=None, description="the id of the request that this one runs again; null for a first run"
    )
    # The last field: see gateway/publish/status_urls.py.
    status_url: str | None = Field(
        default=None,
        description="where to report what becomes of this request, by POST and without a token: valid for 30"
        " days from when it was published; null in a simulation",
    )


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


def rerun_id(execution: str, key: str | int) -> str:
    """Return the id of a request that runs another one again; `key` distinguishes those of the same one."""
    return str(uuid.uuid5(_NAMESPACE, json.dumps(["rerun", execution, key])))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the message's body."""
    return schema_of(ExecutionRequest, name=EXECUTION_REQUEST_SCHEMA, version=EXECUTION_REQUEST_VERSION)
