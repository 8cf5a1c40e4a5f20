"""The worker's two stages: fetch the commit of a ref update, then plan it.

The only place where the rooms `fetch` and `plan` meet: facts of git go in, settlements come out.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from gateway.errors import FetchError, Gone, ObjectUnusable, RemoteUnavailable
from gateway.fetch.commit import Base, Commit, CommitReader
from gateway.fetch.mirror import Mirrors, Wanted
from gateway.fetch.process import GitFailed, GitTimedOut, LimitReached, Progress
from gateway.fetch.reasons import cause_of, local_failures
from gateway.messages.execution_request import ExecutionRequest
from gateway.metrics import FETCH_FAILURES, FETCH_SECONDS, GIT_HOSTS
from gateway.packages.archive import Packages
from gateway.plan.planner import CommitFacts, Plan
from gateway.plan.triggers import Trigger, TriggerMatch, need_paths, read_triggers
from gateway.store.connections import Connection
from gateway.store.executions import NewRequest
from gateway.store.work_queue import PendingUpdate, Settlement
from gateway.threads import PLANNING
from gateway.tracing.spans import traced
from gateway.worker.plan_inputs import PlanInputs, base_branch, pack, plan_update
from gateway.worker.remotes import Remotes
from gateway.worker.update_spans import fetching, planning
from providers import PROVIDERS
from providers.clone_urls import host_of


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchAndPlan:
    """The stages of `gateway.worker.worker`, with real mirrors."""

    mirrors: Mirrors
    remotes: Remotes
    reader: CommitReader
    packages: Packages
    max_request_bytes: int

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Progress
    ) -> dict[int, FetchError]:
        """Fetch the pushed commits into the connection's mirror; return the failures, by update."""
        wanted = [Wanted(ref=update.ref, id=update.after) for update in updates if update.after is not None]
        host = GIT_HOSTS.label(host_of(connection.url))
        with _measured(host), fetching(connection, updates), local_failures():
            async with self.remotes.opened(connection) as remote:
                failed = await self.mirrors.update(
                    connection=connection.id, remote=remote, wanted=wanted, progress=progress
                )
        for error in failed.values():
            FETCH_FAILURES.labels(host, cause_of(error)).inc()
        return {update.seq: failed[update.after] for update in updates if update.after in failed}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Read the commit, and settle the ref update with the requests of its triggers."""
        with planning(connection, update), local_failures():
            return await self._plan(connection, update)

    async def _plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        if update.after is None:
            return Settlement(
                update=update, state="planned", reason=f"the {update.kind} was deleted: nothing runs"
            )
        triggers = read_triggers(connection.triggers)
        commit = await self._read(connection, update, update.after, triggers)
        if not PROVIDERS[connection.provider].BODY_IS_SIGNED:
            await self._verify(connection, update, update.after)
        facts, fetched_at = _commit_facts(commit), datetime.now(UTC)
        # Parsing a valohai.yaml takes up to half a second, too long for the event loop.
        planned, packed_facts = await PLANNING.run(
            lambda: (
                plan_update(connection, update, facts, triggers, self.max_request_bytes),
                pack(PlanInputs(yaml_path=connection.yaml_path, commit=facts)),
            )
        )
        settlement = Settlement(
            update=update,
            state="failed" if planned.failed else "planned",
            reason=planned.reason,
            verdicts=_verdicts(planned.verdicts, planned.failures),
            peeled=commit.id if commit.id != update.after else None,
            author=commit.author,
            facts=packed_facts,
            fetched_at=fetched_at,
        )
        if not planned.requests:
            return settlement
        return await self._with_package(connection, settlement, planned, commit.id, triggers)

    async def _read(
        self, connection: Connection, update: PendingUpdate, object_id: str, triggers: Sequence[Trigger]
    ) -> Commit:
        """Read the commit from the mirror; discard the mirror if it is broken. Raises `FetchError`."""
        try:
            return await self.reader.read(
                self.mirrors.path(connection.id),
                object_id=object_id,
                yaml_path=connection.yaml_path,
                paths_since=await self._base(connection, update) if need_paths(triggers) else None,
            )
        except LimitReached as error:
            raise ObjectUnusable(f"the commit cannot be read: {error}") from error
        except GitTimedOut as error:
            raise RemoteUnavailable(f"the commit cannot be read: {error}") from error
        except GitFailed as error:
            await self.mirrors.discard(connection.id)
            raise RemoteUnavailable(f"the mirror was broken and is fetched again (git: {error})") from error

    async def _with_package(
        self,
        connection: Connection,
        settlement: Settlement,
        planned: Plan,
        commit: str,
        triggers: Sequence[Trigger],
    ) -> Settlement:
        """Return the settlement with the planned requests for the commit's package."""
        remote_of = partial(self.remotes.of_submodule, connection)
        try:
            with traced("build package", settlement.update.delivery):
                ready = await self.packages.ready(connection, commit, remote_of)
        except ObjectUnusable as error:
            # No other triggers would make a package possible: no facts are stored for a dry run.
            failures = {**planned.failures, **{request.trigger: str(error) for request in planned.requests}}
            verdicts = _verdicts(planned.verdicts, failures)
            return replace(settlement, state="failed", reason=str(error), verdicts=verdicts, facts=None)
        code = {"package": ready.package, "submodules": ready.submodules}
        by_name = {trigger.name: trigger for trigger in triggers}
        return replace(
            settlement,
            reason="; ".join([settlement.reason, *ready.warnings]),
            requests=tuple(
                _new_request(request.model_copy(update=code), by_name[request.trigger])
                for request in planned.requests
            ),
        )

    async def _base(self, connection: Connection, update: PendingUpdate) -> Base:
        branch = base_branch(update)
        if update.before is None and update.kind == "branch" and branch is None:
            # Payloads of Bitbucket and of self-hosted hooks, and reconciliations, do not name the default
            # branch.
            branch = await self.mirrors.default_branch(await self.remotes.of(connection))
        return Base(before=update.before, default_branch=branch)

    async def _verify(self, connection: Connection, update: PendingUpdate, object_id: str) -> None:
        """Compare an unsigned delivery with the remote. Raises `Gone` if the ref lacks the commit."""
        pull_request = update.pull_request
        ref = f"refs/heads/{pull_request['source']}" if pull_request else update.ref
        wanted, remote = Wanted(ref=ref, id=object_id), await self.remotes.of(connection)
        if not await self.mirrors.contains(connection=connection.id, remote=remote, wanted=wanted):
            raise Gone(f"the remote's {ref} does not contain {object_id}, and the delivery is not signed")


@contextmanager
def _measured(host: str) -> Iterator[None]:
    """Measure a fetch, and count its failure."""
    began_at = time.monotonic()
    try:
        yield
    except FetchError as error:
        FETCH_FAILURES.labels(host, cause_of(error)).inc()
        raise
    finally:
        FETCH_SECONDS.labels(host).observe(time.monotonic() - began_at)


def _commit_facts(commit: Commit) -> CommitFacts:
    return CommitFacts(
        id=commit.id,
        author=commit.author,
        message=commit.message,
        committed_at=commit.committed_at,
        paths=None if commit.paths is None else commit.paths.names,
        paths_complete=commit.paths is not None and commit.paths.complete,
        manifest=commit.manifest,
        manifest_size=commit.manifest_size,
        signature=commit.signature,
    )


def _verdicts(matches: Sequence[TriggerMatch], failures: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{**asdict(match), "failure": failures.get(match.trigger)} for match in matches]


def _new_request(request: ExecutionRequest, trigger: Trigger) -> NewRequest:
    hours = trigger.lost_after_hours
    return NewRequest(
        id=request.id,
        connection=request.connection,
        delivery=request.delivery,
        project=request.project,
        trigger=request.trigger,
        target=request.execution.name,
        subject=f"{request.repository.name or request.repository.url}@{request.commit.id}",
        body=request.model_dump_json().encode(),
        lane=trigger.lane,
        is_latest_only=trigger.policy == "latest",
        lost_after=None if hours is None else timedelta(hours=hours),
    )
