"""Plan a ref update: facts about connection, update and commit in, execution requests and reasons out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from gateway.errors import PlanError
from gateway.messages.execution import Execution
from gateway.messages.execution_request import (
    MAX_REQUEST_BYTES,
    Commit,
    ExecutionRequest,
    MergeGroup,
    PullRequest,
    Ref,
    Repository,
    execution_id,
)
from gateway.plan.globs import matches
from gateway.plan.json_values import listed, shortened
from gateway.plan.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestCache
from gateway.plan.pipeline import resolve_pipeline
from gateway.plan.step import resolve_step, values_of
from gateway.plan.task import resolve_task
from gateway.plan.triggers import MoveFacts, PullRequestFacts, Trigger, TriggerMatch, branch_of, match
from providers.model import Action, RefKind, merge_queue_base
from providers.pages import commit_page

# All requests of a ref update are built and stored together, and a connection has up to 100 triggers.
_MAX_PLAN_BYTES = 8 * 1024 * 1024
# Names in a valohai.yaml may be of any length, and reasons are shown in lists and sent as events.
_MAX_FAILURE_LENGTH = 1000
_MAX_REASON_LENGTH = 4000
_MANIFESTS = ManifestCache()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitFacts:
    """The facts about a commit that planning requires.

    `paths` are the changed paths according to git, or None if no trigger of the connection depends on them;
    `paths_complete` is False if there were too many to list.
    `manifest_size` is None if the commit has no valohai.yaml; `manifest` is also None if it is too large.
    """

    id: str
    author: str
    message: str
    committed_at: datetime
    paths: Sequence[str] | None
    paths_complete: bool
    manifest: bytes | None
    manifest_size: int | None
    signature: Literal["valid", "unknown", "none"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateFacts:
    """The facts about a ref update. `generation` counts the moves of its ref."""

    delivery: str
    ref: str
    kind: RefKind
    name: str
    before: str | None
    after: str | None
    action: Action
    generation: int
    pusher: str | None
    pull_request: PullRequestFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionFacts:
    """The facts about a connection, with the payload's data about its repository.

    `follows` are globs for branches, as in triggers: nothing runs for branches that they do not match.
    """

    id: str
    project: str
    provider: str
    url: str
    yaml_path: str
    repository_id: str | None
    repository_name: str | None
    web_url: str | None
    follows: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The result: the requests, the outcome of matching each trigger, and one sentence for people.

    `failures` has the reason for each matching trigger without a request, by the trigger's name. The sentence
    includes these reasons.
    """

    requests: tuple[ExecutionRequest, ...]
    verdicts: tuple[TriggerMatch, ...]
    reason: str
    failures: Mapping[str, str]

    @property
    def failed(self) -> bool:
        """Return whether a matching trigger's request could not be made."""
        return bool(self.failures)


def plan(
    *,
    connection: ConnectionFacts,
    update: UpdateFacts,
    commit: CommitFacts,
    triggers: Sequence[Trigger],
    max_request_bytes: int = MAX_REQUEST_BYTES,
) -> Plan:
    """Return the plan for a commit. A trigger's failure does not affect the others.

    A request of more than `max_request_bytes`, without its package, is such a failure.
    """
    verdicts = _verdicts(connection, update, commit, triggers)
    matched = [trigger for trigger, verdict in zip(triggers, verdicts, strict=True) if verdict.matched]
    if not matched:
        return Plan(requests=(), verdicts=verdicts, reason=_no_match(verdicts), failures={})
    try:
        manifest = _manifest(commit, connection.yaml_path)
    except PlanError as error:
        reason = shortened(str(error), _MAX_FAILURE_LENGTH)
        failures = {trigger.name: reason for trigger in matched}
        return Plan(requests=(), verdicts=verdicts, reason=reason, failures=failures)
    requests, failures = _requests(connection, update, commit, matched, manifest, max_bytes=max_request_bytes)
    return Plan(
        requests=tuple(requests), verdicts=verdicts, reason=_summary(requests, failures), failures=failures
    )


def _verdicts(
    connection: ConnectionFacts, update: UpdateFacts, commit: CommitFacts, triggers: Sequence[Trigger]
) -> tuple[TriggerMatch, ...]:
    unfollowed = _unfollowed(connection, update)
    if unfollowed is not None:
        return tuple(
            TriggerMatch(trigger=trigger.name, matched=False, reason=unfollowed) for trigger in triggers
        )
    move = MoveFacts(
        kind=update.kind,
        name=update.name,
        action=update.action,
        paths=commit.paths or (),
        paths_complete=commit.paths_complete,
        author=commit.author,
        message=commit.message,
        pull_request=update.pull_request,
    )
    return tuple(match(trigger, move) for trigger in triggers)


def _unfollowed(connection: ConnectionFacts, update: UpdateFacts) -> str | None:
    """Return why nothing runs for a branch, or None; a pull request counts as its target branch."""
    branch = branch_of(update.kind, update.name, update.pull_request)
    if update.kind == "tag" or matches(connection.follows, branch):
        return None
    return f"the connection does not follow branch {branch}, only {', '.join(connection.follows)}"


def _no_match(verdicts: Sequence[TriggerMatch]) -> str:
    if not verdicts:
        return "fetched; the connection has no triggers"
    reasons = "; ".join(f"{verdict.trigger}: {verdict.reason}" for verdict in verdicts)
    return shortened(f"no trigger matched: {reasons}", _MAX_REASON_LENGTH)


def _requests(
    connection: ConnectionFacts,
    update: UpdateFacts,
    commit: CommitFacts,
    triggers: Sequence[Trigger],
    manifest: Manifest,
    *,
    max_bytes: int,
) -> tuple[list[ExecutionRequest], dict[str, str]]:
    """Return the requests of the triggers that matched, and why others have none, by trigger."""
    requests: list[ExecutionRequest] = []
    failures: dict[str, str] = {}
    max_plan_bytes = max(_MAX_PLAN_BYTES, max_bytes)
    bytes_left = max_plan_bytes
    for trigger in triggers:
        try:
            _check_bytes_left(bytes_left, max_plan_bytes)
            execution = _execution(trigger, manifest, max_bytes=max_bytes)
            request = _request(connection, update, commit, trigger, execution)
            bytes_left -= _checked_size(request, max_bytes)
            requests.append(request)
        except PlanError as error:
            failures[trigger.name] = shortened(str(error), _MAX_FAILURE_LENGTH)
    return requests, failures


def _summary(requests: Sequence[ExecutionRequest], failures: Mapping[str, str]) -> str:
    problems = [f"trigger {name}: {failure}" for name, failure in failures.items()]
    done = f"{len(requests)} execution request{'s' if len(requests) != 1 else ''}"
    return shortened(
        "; ".join([*problems, done] if requests or not failures else problems), _MAX_REASON_LENGTH
    )


def _manifest(commit: CommitFacts, path: str) -> Manifest:
    if commit.manifest_size is None:
        raise PlanError(f"the commit has no file {path}")
    if commit.manifest is None:
        raise PlanError(f"{path} has {commit.manifest_size} bytes; at most {MAX_MANIFEST_BYTES} are read")
    return _MANIFESTS.read(commit.manifest, path=path)


def _request(
    connection: ConnectionFacts,
    update: UpdateFacts,
    commit: CommitFacts,
    trigger: Trigger,
    execution: Execution,
) -> ExecutionRequest:
    return ExecutionRequest(
        id=execution_id(
            connection=connection.id,
            ref=update.ref,
            generation=update.generation,
            before=update.before,
            after=update.after,
            trigger=trigger.name,
        ),
        project=connection.project,
        connection=connection.id,
        delivery=update.delivery,
        repository=repository_of(connection),
        ref=ref_of(update),
        pull_request=pull_request_of(update),
        merge_group=merge_group_of(update),
        commit=_commit(connection, update, commit),
        pushed_by=update.pusher,
        trigger=trigger.name,
        yaml_path=connection.yaml_path,
        execution=execution,
    )


def _commit(connection: ConnectionFacts, update: UpdateFacts, commit: CommitFacts) -> Commit:
    return Commit(
        id=commit.id,
        before=update.before,
        author=commit.author,
        message=commit.message,
        committed_at=commit.committed_at,
        signature=commit.signature,
        url=commit_page(connection.provider, connection.web_url, commit.id),
    )


def _check_bytes_left(bytes_left: int, max_bytes: int) -> None:
    """Raise `PlanError` if the previous requests of this ref update use up the limit."""
    if bytes_left <= 0:
        raise PlanError(f"the requests of the triggers before it exceed {max_bytes} bytes together")


def _checked_size(request: ExecutionRequest, max_bytes: int) -> int:
    """Return the size of a request in bytes. Raises `PlanError` if a broker might refuse it."""
    size = len(request.model_dump_json().encode())
    if size > max_bytes:
        raise PlanError(
            f"the message for {request.execution.kind} {request.execution.name} would have {size} bytes;"
            f" at most {max_bytes} are sent"
        )
    return size


def repository_of(connection: ConnectionFacts) -> Repository:
    """Return the repository for a message."""
    return Repository(
        provider=connection.provider,
        id=connection.repository_id,
        name=connection.repository_name,
        url=connection.url,
    )


def ref_of(update: UpdateFacts) -> Ref:
    """Return the ref for a message; for a pull request, its source branch."""
    if update.pull_request is not None:
        return Ref(name=update.pull_request.source, kind="branch")
    return Ref(name=update.name, kind="tag" if update.kind == "tag" else "branch")


def pull_request_of(update: UpdateFacts) -> PullRequest | None:
    """Return the pull request for a message."""
    pull_request = update.pull_request
    if pull_request is None:
        return None
    return PullRequest(
        number=pull_request.number,
        source=pull_request.source,
        target=pull_request.target,
        from_fork=pull_request.from_fork,
    )


def merge_group_of(update: UpdateFacts) -> MergeGroup | None:
    """Return the merge group for a message."""
    return MergeGroup(base=merge_queue_base(update.name)) if update.kind == "merge_group" else None


def _execution(trigger: Trigger, manifest: Manifest, *, max_bytes: int) -> Execution:
    if trigger.run.task is not None:
        task = manifest.tasks.get(trigger.run.task)
        if task is None:
            raise PlanError(_unknown("task", trigger.run.task, manifest.tasks, manifest.path))
        return resolve_task(task, trigger, manifest)
    if trigger.run.pipeline is not None:
        pipeline = manifest.pipelines.get(trigger.run.pipeline)
        if pipeline is None:
            raise PlanError(_unknown("pipeline", trigger.run.pipeline, manifest.pipelines, manifest.path))
        return resolve_pipeline(pipeline, trigger, manifest, max_bytes=max_bytes)
    step = manifest.steps.get(trigger.run.step or "")
    if step is None:
        raise PlanError(_unknown("step", trigger.run.step, manifest.steps, manifest.path))
    return resolve_step(step, values_of(trigger))


def _unknown(kind: str, name: str | None, known: Iterable[str], path: str) -> str:
    return f"{path} has no {kind} {name}; its {kind}s: {listed(known)}"
