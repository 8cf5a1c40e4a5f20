"""The planner's inputs, made from the store's records: for the worker and for the dry run.

Both plan with the same code from the same facts. The worker reads the facts of a commit from the mirror and
stores them with the ref update. A dry run therefore needs no mirror, and plans from what the worker read.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

import zstandard

from gateway.plan.planner import CommitFacts, ConnectionFacts, Plan, UpdateFacts, plan
from gateway.plan.triggers import PullRequestFacts, Trigger
from gateway.store.connections import Connection
from gateway.store.work_queue import PendingUpdate
from providers.model import merge_queue_base

_MAX_PACKED_BYTES = 64 * 1024
# Limits the memory of a dry run: megabytes of zeros are packed into a few bytes.
_MAX_UNPACKED_BYTES = 4 * 1024 * 1024
_LEVEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """The facts that a ref update was planned from; the manifest was read at `yaml_path`."""

    yaml_path: str
    commit: CommitFacts


def plan_update(
    connection: Connection,
    update: PendingUpdate,
    commit: CommitFacts,
    triggers: Sequence[Trigger],
    max_request_bytes: int,
) -> Plan:
    """Plan a ref update. Takes up to half a second: do not call it on the event loop."""
    return plan(
        connection=connection_facts(connection, update),
        update=update_facts(update),
        commit=commit,
        triggers=triggers,
        max_request_bytes=max_request_bytes,
    )


def connection_facts(connection: Connection, update: PendingUpdate) -> ConnectionFacts:
    """Return the planner's facts of a connection, completed from the update's payload."""
    return ConnectionFacts(
        id=connection.id,
        project=connection.project,
        provider=connection.provider,
        url=connection.url,
        yaml_path=connection.yaml_path,
        repository_id=connection.repository_id or update.repository.get("id"),
        repository_name=update.repository.get("full_name"),
        web_url=update.repository.get("web_url"),
        follows=connection.follows,
    )


def update_facts(update: PendingUpdate) -> UpdateFacts:
    """Return the planner's facts of a ref update."""
    return UpdateFacts(
        delivery=update.delivery,
        ref=update.ref,
        kind=update.kind,
        name=update.name,
        before=update.before,
        after=update.after,
        action=update.action,
        generation=update.generation,
        pusher=update.pusher,
        pull_request=_pull_request(update),
    )


def base_branch(update: PendingUpdate) -> str | None:
    """Return the branch that a new branch, a pull request or a merge group is compared with.

    For the last two it is their target branch. None if the payload names no branch.
    """
    if update.kind == "merge_group":
        return merge_queue_base(update.name)
    pull_request = update.pull_request
    branch: str | None = pull_request["target"] if pull_request else update.repository.get("default_branch")
    return branch


def pack(facts: PlanInputs) -> bytes | None:
    """Return the facts in their stored form; None if they are too large, as when too many paths have changed.

    Paths and manifests may be other bytes than UTF-8: lone surrogates and latin-1 carry them through JSON.
    """
    commit = asdict(facts.commit)
    packable = {
        **{name: commit[name] for name in ("id", "author", "message")},
        # An earlier version of Pushgate reads this as well, and takes unread paths for too many to list.
        "paths": commit["paths"] or (),
        "paths_complete": facts.commit.paths is not None and facts.commit.paths_complete,
        "paths_read": facts.commit.paths is not None,
        **{name: commit[name] for name in ("manifest_size", "signature")},
        "committed_at": facts.commit.committed_at.isoformat(),
        "manifest": None if facts.commit.manifest is None else facts.commit.manifest.decode("latin-1"),
        "yaml_path": facts.yaml_path,
    }
    raw = json.dumps(packable).encode()
    if len(raw) > _MAX_UNPACKED_BYTES:
        return None
    packed = zstandard.compress(raw, _LEVEL)
    return packed if len(packed) <= _MAX_PACKED_BYTES else None


def unpack(packed: bytes) -> PlanInputs:
    """Return the facts that `pack` packed."""
    facts = json.loads(zstandard.decompress(packed))
    manifest = facts["manifest"]
    return PlanInputs(
        yaml_path=facts["yaml_path"],
        commit=CommitFacts(
            id=facts["id"],
            author=facts["author"],
            message=facts["message"],
            committed_at=datetime.fromisoformat(facts["committed_at"]),
            paths=tuple(facts["paths"]) if facts.get("paths_read", True) else None,
            paths_complete=facts["paths_complete"],
            manifest=None if manifest is None else manifest.encode("latin-1"),
            manifest_size=facts["manifest_size"],
            signature=facts["signature"],
        ),
    )


def _pull_request(update: PendingUpdate) -> PullRequestFacts | None:
    pull_request = update.pull_request
    if pull_request is None:
        return None
    fields = {name: pull_request[name] for name in ("number", "source", "target", "from_fork")}
    return PullRequestFacts(**fields)
