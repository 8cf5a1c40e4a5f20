"""`POST /connections/{id}/plan`: which requests of past pushes would differ under other rules.

Stored ref updates are planned again, by the worker's code, from the facts that the worker planned from.
Nothing is fetched, written or published.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from gateway.api.endpoints import read
from gateway.api.openapi import Operation
from gateway.api.query import limit, moment
from gateway.api.schemas import (
    Follows,
    Line,
    NewTriggers,
    PackageFormat,
    Page,
    RequestBody,
    UpdateKind,
    Url,
)
from gateway.api.views import VerdictView
from gateway.errors import FetchError
from gateway.fetch.commit import Base, CommitReader
from gateway.fetch.credentials import take_login
from gateway.fetch.mirror import Mirrors
from gateway.messages.execution_request import ExecutionRequest
from gateway.messages.packages import package_in, with_package
from gateway.plan.diff import differences
from gateway.plan.json_values import shortened
from gateway.plan.planner import CommitFacts, Plan
from gateway.plan.source_rules import YamlPath
from gateway.plan.triggers import Trigger, need_paths, read_triggers
from gateway.store import connections, executions, past_updates
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.executions import StoredRequest
from gateway.store.past_updates import PastUpdate
from gateway.store.work_queue import PendingUpdate
from gateway.threads import FILES, PLANNING
from gateway.worker.plan_inputs import base_branch, plan_update, unpack

# Planning a large commit takes seconds: a page ends after this time, and the next page continues.
_PAGE_SECONDS = 10.0
_MAX_VALUE_LENGTH = 10_000


class Rules(RequestBody):
    """The settings of a connection that planning depends on; omitted ones stay as they are."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"triggers": [{"name": "train", "branches": ["**"], "run": {"step": "train"}}]}]
        }
    )

    url: Url | None = Field(default=None, description="another clone URL")
    project: Line | None = Field(default=None, description="another project of the platform")
    triggers: NewTriggers | None = Field(default=None, description="the triggers to simulate")
    yaml_path: YamlPath | None = Field(default=None, description="another path of the manifest")
    follows: Follows | None = Field(default=None, description="other globs of branches that count")
    package_format: PackageFormat | None = Field(default=None, description="another format of packages")


class ChangedValue(BaseModel):
    """The values of a field before and after; very long ones are shortened."""

    model_config = ConfigDict(serialize_by_alias=True)

    before: Any = Field(serialization_alias="from", description="the value in the stored message")
    after: Any = Field(serialization_alias="to", description="the value under the simulated rules")


class RequestChange(BaseModel):
    """The change of a trigger's request for a ref update."""

    change: Literal["new", "gone", "changed", "same", "failed"] = Field(
        description="`failed`: the trigger matches, but its request cannot be built, unlike before"
    )
    trigger: str = Field(description="the trigger's name")
    execution: str | None = Field(description="the id of the execution request")
    target: str | None = Field(description="the name of the step, pipeline or task")
    reason: str = Field(description="the trigger's verdict, or why the request cannot be built")
    fields: dict[str, ChangedValue] = Field(
        default_factory=dict, description="the values that differ, by their paths in the message"
    )


class PlayedUpdate(BaseModel):
    """A stored ref update, and the changes of its requests."""

    delivery: str = Field(description="the id of its delivery")
    received_at: datetime = Field(description="when the delivery was received")
    ref: str = Field(description="the full name of the ref")
    kind: UpdateKind = Field(description="the kind of ref")
    name: str = Field(description="the short name")
    before: str | None = Field(description="the object id before; null if the ref did not exist")
    after: str | None = Field(description="the object id after; null if the ref was deleted")
    unplayed: str | None = Field(description="why it cannot be simulated; null if it was")
    requests: list[RequestChange] = Field(description="one for each trigger with a request before or after")
    verdicts: list[VerdictView] = Field(
        default_factory=list,
        description="the verdict of each trigger under the simulated rules; empty if it was not simulated",
    )


class PlayedPage(Page[PlayedUpdate]):
    """A page of simulated ref updates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """The endpoint for dry runs."""

    database: Database
    mirrors: Mirrors
    reader: CommitReader
    max_request_bytes: int

    def operations(self) -> list[Operation]:
        """Return the operation."""
        return [
            Operation(
                method="POST",
                path="/connections/{id}/plan",
                endpoint=self.plan_connection,
                body=Rules,
                query=("since", "limit", "cursor"),
            )
        ]

    async def plan_connection(self, request: Request) -> PlayedPage:
        """`POST /connections/{id}/plan`: simulate other rules over past deliveries, newest first.

        Nothing is fetched, stored or published. A page ends early where planning takes long.
        """
        connection_id, query = request.path_params["id"], request.query_params
        wanted = (await read(request, Rules)).model_dump(exclude_none=True)
        if "url" in wanted:
            wanted["url"] = take_login(wanted["url"], "")[0]
        connection = await self.database.read(connections.get, connection_id=connection_id)
        rules = replace(connection, **wanted)
        until = time.monotonic() + _PAGE_SECONDS
        triggers = read_triggers(rules.triggers)
        past, rest = await self.database.read(
            past_updates.page,
            connection=connection_id,
            since=moment(query.get("since"), "since"),
            before=query.get("cursor"),
            limit=limit(request),
        )
        played: list[PlayedUpdate] = []
        for past_update in past:
            if played and time.monotonic() > until and played[-1].delivery != past_update.update.delivery:
                return PlayedPage(items=played, next=played[-1].delivery)
            # One at a time: the facts and the requests of an update may be megabytes.
            planned = await self._planned(rules, triggers, past_update)
            requests = await self.database.read(executions.of_update, ref_update=past_update.update.seq)
            played.append(await PLANNING.run(_played, rules, triggers, past_update, planned, requests))
        return PlayedPage(items=played, next=rest)

    async def _planned(self, rules: Connection, triggers: Sequence[Trigger], past: PastUpdate) -> Plan | str:
        """Return the plan of an update under other rules, or why it cannot be planned again."""
        facts = await self._facts(rules, triggers, past)
        if isinstance(facts, str):
            return facts
        return await PLANNING.run(plan_update, rules, past.update, facts, triggers, self.max_request_bytes)

    async def _facts(
        self, rules: Connection, triggers: Sequence[Trigger], past: PastUpdate
    ) -> CommitFacts | str:
        """Return the facts that an update was planned from, or why it cannot be planned again."""
        if past.state == "pending":
            return "it has not been planned yet"
        if past.facts is None:
            return past.reason if past.state in {"gone", "failed"} and past.reason else _NOT_KEPT
        kept = await PLANNING.run(unpack, past.facts)
        commit, mirror = kept.commit, self.mirrors.path(rules.id)
        lacking = []
        if kept.yaml_path != rules.yaml_path:
            # Only the manifest that was planned from is stored.
            lacking.append(f"{rules.yaml_path} of its commit is not stored, only {kept.yaml_path} is")
        if commit.paths is None and need_paths(triggers):
            lacking.append("its changed paths are not stored, because no trigger used them")
        if not lacking:
            return commit
        missing = "; ".join(lacking)
        if not await FILES.run((mirror / "HEAD").exists):
            return f"{missing}; and the process that answers has no mirror of the repository"
        try:
            return await self._completed(mirror, commit, rules, triggers, past.update)
        except FetchError as error:
            return f"{missing}; and the mirror does not contain it (git: {error})"

    async def _completed(
        self,
        mirror: Path,
        commit: CommitFacts,
        rules: Connection,
        triggers: Sequence[Trigger],
        update: PendingUpdate,
    ) -> CommitFacts:
        """Return the facts, completed from the mirror for the other rules."""
        manifest, size = await self.reader.manifest(mirror, commit.id, rules.yaml_path)
        commit = replace(commit, manifest=manifest, manifest_size=size)
        if commit.paths is not None or not need_paths(triggers):
            return commit
        since = Base(before=update.before, default_branch=base_branch(update))
        paths = await self.reader.paths(mirror, commit.id, since)
        return replace(commit, paths=paths.names, paths_complete=paths.complete)


_NOT_KEPT = (
    "the facts it was planned from are not stored: an earlier version planned it, or it changed too many"
    " paths"
)


def _played(
    rules: Connection,
    triggers: Sequence[Trigger],
    past: PastUpdate,
    planned: Plan | str,
    requests: Sequence[StoredRequest],
) -> PlayedUpdate:
    update, unplayed = past.update, None
    changes: list[RequestChange] = []
    verdicts: list[VerdictView] = []
    if isinstance(planned, str):
        unplayed = planned if update.after is not None else None
    else:
        changes = list(_changes(rules, triggers, past, requests, planned))
        verdicts = [
            VerdictView(
                trigger=one.trigger,
                matched=one.matched,
                reason=one.reason,
                failure=planned.failures.get(one.trigger),
            )
            for one in planned.verdicts
        ]
    return PlayedUpdate(
        delivery=update.delivery,
        received_at=update.received_at,
        ref=update.ref,
        kind=update.kind,
        name=update.name,
        before=update.before,
        after=update.after,
        unplayed=unplayed,
        requests=changes,
        verdicts=verdicts,
    )


def _changes(
    rules: Connection,
    triggers: Sequence[Trigger],
    past: PastUpdate,
    requests: Sequence[StoredRequest],
    planned: Plan,
) -> Iterator[RequestChange]:
    """Yield the change of each trigger's request.

    A request that a later commit superseded counts as made, because the rules did not cause that.
    """
    before = {request.trigger: request for request in requests}
    failed = {verdict["trigger"]: verdict.get("failure") for verdict in past.verdicts}
    after = {request.trigger: request for request in planned.requests}
    for trigger, verdict in zip(triggers, planned.verdicts, strict=True):
        name = trigger.name
        old, new = before.pop(name, None), after.get(name)
        reason = planned.failures.get(name, verdict.reason)
        if old is not None and new is not None:
            yield _compared(rules, trigger, old, new, reason)
        elif old is not None:
            yield _gone(old, reason)
        elif new is not None:
            yield RequestChange(
                change="new", trigger=name, execution=new.id, target=new.execution.name, reason=reason
            )
        elif name in planned.failures and failed.get(name) != reason:
            yield RequestChange(change="failed", trigger=name, execution=None, target=None, reason=reason)
    for old in before.values():
        yield _gone(old, "no trigger has this name")


def _gone(old: StoredRequest, reason: str) -> RequestChange:
    return RequestChange(
        change="gone", trigger=old.trigger, execution=old.id, target=old.target, reason=reason
    )


def _compared(
    rules: Connection, trigger: Trigger, stored: StoredRequest, new: ExecutionRequest, reason: str
) -> RequestChange:
    # Without its package, which has no URL yet, and is of another form in requests of an earlier version.
    old = ExecutionRequest.model_validate_json(with_package(stored.body, None))
    differing = dict(differences(old, new))
    if stored.lane != trigger.lane:
        differing["lane"] = (stored.lane, trigger.lane)
    package = package_in(stored.body)
    if package is not None and package.format != rules.package_format:
        differing["package.format"] = (package.format, rules.package_format)
    return RequestChange(
        change="changed" if differing else "same",
        trigger=stored.trigger,
        execution=stored.id,
        target=new.execution.name,
        reason=reason,
        fields={
            place: ChangedValue(before=_shown(was), after=_shown(becomes))
            for place, (was, becomes) in differing.items()
        },
    )


def _shown(value: Any) -> Any:
    """Return a value, shortened if it is very long."""
    text = json.dumps(value, ensure_ascii=False)
    return value if len(text) <= _MAX_VALUE_LENGTH else shortened(text, _MAX_VALUE_LENGTH)
