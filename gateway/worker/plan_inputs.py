"""Between the store's records and the planner: for the worker that settles, and for the dry run.

Both plan by the same code from the same facts. The worker reads what there is to know of a commit from the
mirror; it is kept with the ref update, so that who plays that again needs no mirror, and sees what it saw.
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
# What is unpacked again for a dry run: zeros by the megabyte are packed into a few bytes.
_MAX_UNPACKED_BYTES = 4 * 1024 * 1024
_LEVEL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """What a ref update was planned from; the manifest is the one that was at `yaml_path`."""

    yaml_path: str
    commit: CommitFacts


def plan_update(
    connection: Connection, update: PendingUpdate, commit: CommitFacts, triggers: Sequence[Trigger]
) -> Plan:
    """Say what a ref update asks for. Takes up to half a second: not for the event loop."""
    return plan(
        connection=connection_facts(connection, update),
        update=update_facts(update),
        commit=commit,
        triggers=triggers,
    )


def connection_facts(connection: Connection, update: PendingUpdate) -> ConnectionFacts:
    """Return what planning needs to know of a connection, with what the update's payload tells of it."""
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
    """Return what planning needs to know of a ref update."""
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

    It is the one that the last two want to go into; None where nobody tells.
    """
    if update.kind == "merge_group":
        return merge_queue_base(update.name)
    asked = update.pull_request
    branch: str | None = asked["target"] if asked else update.repository.get("default_branch")
    return branch


def pack(facts: PlanInputs) -> bytes | None:
    """Return the facts as they are kept; None where they are too large, as when too many paths have changed.

    A path need not be UTF-8, nor a manifest: lone surrogates and latin-1 bring their bytes through JSON.
    """
    commit = asdict(facts.commit)
    told = {
        **{name: commit[name] for name in ("id", "author", "message")},
        # An earlier version, which reads this as well, takes paths that nobody has read for too many.
        "paths": commit["paths"] or (),
        "paths_complete": facts.commit.paths is not None and facts.commit.paths_complete,
        "paths_read": facts.commit.paths is not None,
        **{name: commit[name] for name in ("manifest_size", "signature")},
        "committed_at": facts.commit.committed_at.isoformat(),
        "manifest": None if facts.commit.manifest is None else facts.commit.manifest.decode("latin-1"),
        "yaml_path": facts.yaml_path,
    }
    raw = json.dumps(told).encode()
    if len(raw) > _MAX_UNPACKED_BYTES:
        return None
    packed = zstandard.compress(raw, _LEVEL)
    return packed if len(packed) <= _MAX_PACKED_BYTES else None


def unpack(packed: bytes) -> PlanInputs:
    """Return the facts that `pack` was given."""
    told = json.loads(zstandard.decompress(packed))
    manifest = told["manifest"]
    return PlanInputs(
        yaml_path=told["yaml_path"],
        commit=CommitFacts(
            id=told["id"],
            author=told["author"],
            message=told["message"],
            committed_at=datetime.fromisoformat(told["committed_at"]),
            paths=tuple(told["paths"]) if told.get("paths_read", True) else None,
            paths_complete=told["paths_complete"],
            manifest=None if manifest is None else manifest.encode("latin-1"),
            manifest_size=told["manifest_size"],
            signature=told["signature"],
        ),
    )


def _pull_request(update: PendingUpdate) -> PullRequestFacts | None:
    told = update.pull_request
    if told is None:
        return None
    named = {name: told[name] for name in ("number", "source", "target", "from_fork")}
    return PullRequestFacts(**named)
