"""From settled ref updates and stored executions to verdicts on commits. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.messages.execution_states import ExecutionState
from gateway.plan.manifest import line_of
from gateway.provider_apis.statuses import Annotation, CommitStatus, StatusState
from gateway.store.commit_statuses import FETCH_CONTEXT, Expected, context_of
from gateway.store.connections import Connection
from gateway.store.executions import StoredRequest
from gateway.store.status_tasks import Verdict
from gateway.store.work_queue import Settlement

_STATES: Mapping[ExecutionState, StatusState] = {
    "pending": "waiting",
    "published": "waiting",
    "accepted": "waiting",
    "running": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
    "rejected": "error",
    "lost": "lost",
    "superseded": "superseded",
    "undeliverable": "error",
    "dropped": "cancelled",
}
_DESCRIPTIONS: Mapping[ExecutionState, str] = {
    "pending": "waiting for the message broker",
    "published": "waiting for a runner",
    "accepted": "accepted by a runner",
    "running": "running",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
    "rejected": "no runner can execute it",
    "lost": "its runner has gone silent",
    "superseded": "superseded by a later commit",
    "undeliverable": "the message broker refuses the request",
    "dropped": "withdrawn by an operator",
}


_MAX_DIGITS = 9


def expected(connection: Connection, settlement: Settlement) -> tuple[Expected, ...]:
    """Return the verdicts that a settled ref update leads to; none for a deleted ref."""
    commit = settlement.peeled or settlement.update.after
    return () if commit is None else tuple(_expected(connection, settlement, commit))


def _expected(connection: Connection, settlement: Settlement, commit: str) -> Iterator[Expected]:
    update = settlement.update
    pull_request = update.pull_request
    common: dict[str, Any] = {
        "commit": commit,
        "ref": update.ref if pull_request is None else f"refs/heads/{pull_request['source']}",
        "delivery": update.delivery,
        "pull_request": None if pull_request is None else _number(pull_request["number"]),
    }
    for request in settlement.requests:
        yield Expected(**common, context=context_of(request.trigger), request=request.id)
    requested = {request.trigger for request in settlement.requests}
    failed = [verdict for verdict in settlement.verdicts if verdict.get("failure") is not None]
    for verdict in failed:
        trigger, reason = verdict["trigger"], verdict["failure"]
        if trigger in requested:
            continue
        line = line_of(reason, connection.yaml_path)
        yield Expected(
            **common,
            context=context_of(trigger),
            outcome="error",
            reason=reason,
            file=None if line is None else connection.yaml_path,
            line=line,
        )
    for verdict in settlement.verdicts:
        if verdict.get("skipped"):
            context = context_of(verdict["trigger"])
            yield Expected(**common, context=context, outcome="skipped", reason=verdict["reason"])
    if settlement.state == "failed" and not failed:
        yield Expected(**common, context=FETCH_CONTEXT, outcome="error", reason=settlement.reason)


def _number(given: str) -> int | None:
    # The provider's text; all that have pull requests number them.
    return int(given) if given.isascii() and given.isdigit() and len(given) <= _MAX_DIGITS else None


def status_of(verdict: Verdict, *, base_url: str) -> CommitStatus:
    """Return the status that shows a verdict. Its page is that of the delivery."""
    execution = verdict.execution
    state, description = _without_execution(verdict) if execution is None else _of_execution(execution)
    summary = None if execution is None or execution.run is None else execution.run.summary
    annotations: tuple[Annotation, ...] = ()
    if verdict.file is not None and verdict.line is not None:
        annotations = (Annotation(path=verdict.file, line=verdict.line, message=description),)
    return CommitStatus(
        commit=verdict.commit,
        context=verdict.context,
        state=state,
        description=description,
        url=f"{base_url}/deliveries/{verdict.delivery}",
        ref=verdict.ref,
        pull_request=verdict.pull_request,
        execution=None if execution is None else execution.id,
        summary=summary,
        annotations=annotations,
    )


def _without_execution(verdict: Verdict) -> tuple[StatusState, str]:
    outcomes: Mapping[str | None, StatusState] = {"succeeded": "succeeded", "skipped": "skipped"}
    return outcomes.get(verdict.outcome, "error"), verdict.reason or "could not be planned"


def _of_execution(execution: StoredRequest) -> tuple[StatusState, str]:
    state = execution.shown_state
    said = _DESCRIPTIONS[state]
    run = execution.run
    if run is not None and run.summary and (lines := run.summary.strip().splitlines()):
        said = f"{said}: {lines[0].lstrip('# ')}"
    elif run is None and execution.reason is not None and state in {"superseded", "undeliverable"}:
        said = execution.reason
    return _STATES[state], said
