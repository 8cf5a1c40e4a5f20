"""Complete messages, as the planner makes them for a push to a repository with the valohai.yaml beside this.

`testing.documents` writes them to gateway/messages/examples/, from where the schemas take them.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.messages.events import TriggerFailure
from gateway.messages.execution_cancelled import ExecutionCancelled, cancel_id
from gateway.messages.execution_request import ExecutionRequest, Package
from gateway.plan.outcome import event
from gateway.plan.planner import CommitFacts, ConnectionFacts, UpdateFacts, plan
from gateway.plan.triggers import read_triggers

MANIFEST = (Path(__file__).parent / "valohai.yaml").read_bytes()
TRIGGERS: Sequence[dict[str, Any]] = (
    {"name": "train@main", "run": {"step": "train"}, "parameters": {"seed": 11, "quiet": True}},
    {"name": "pipeline:churn@main", "run": {"pipeline": "churn"}, "parameters": {"share": 0.75}},
    {"name": "task:sweep@main", "run": {"task": "sweep"}},
)
PACKAGE = Package(
    id="aeffd0795d1f2cf1cd1c9a2ab4a4ed7e4a1d5d8a1b3c0a2f54d5a0d2f6c4b7e1",
    url="https://push.example/api/v1/packages/aeffd0795d1f2cf1cd1c9a2ab4a4ed7e4a1d5d8a1b3c0a2f54d5a0d2f6c4b7e1"
    "?format=tar.gz&expires=1780000000&signature=c2lnbmF0dXJl",
    expires_at=datetime(2026, 5, 11, 12, 31, tzinfo=UTC),
    sha256="1f3a5be2ff2b4a0cb4c6e5f2f7a9d0c1b3e4a5968778695a4b3c2d1e0f9a8b7c",
    size=25105,
    format="tar.gz",
)
_CONNECTION = ConnectionFacts(
    id="cn_5f0c9a",
    project="churn",
    provider="github",
    url="https://github.com/acme/churn.git",
    yaml_path="valohai.yaml",
    repository_id="48215",
    repository_name="acme/churn",
    web_url="https://github.com/acme/churn",
)
_UPDATE = UpdateFacts(
    delivery="dl_71b2e4",
    ref="refs/heads/main",
    kind="branch",
    name="main",
    before="3b18e512dba79e4c8300dd08aeb37f8e728b8dad",
    after="9d4f1e7c0b52a8c63f20d1e5a7b9c4d8e6f31a20",
    action="update",
    generation=4,
    pusher="mona",
)
_COMMIT = CommitFacts(
    id="9d4f1e7c0b52a8c63f20d1e5a7b9c4d8e6f31a20",
    author="Mona <mona@example.com>",
    message="Train with more layers\n",
    committed_at=datetime(2026, 5, 4, 12, 30, tzinfo=UTC),
    paths=("train.py",),
    paths_complete=True,
    manifest=MANIFEST,
    manifest_size=len(MANIFEST),
    signature="none",
)


def requests(manifest: bytes = MANIFEST) -> list[ExecutionRequest]:
    """Return the requests for the step, the pipeline and the task, with a package."""
    commit = replace(_COMMIT, manifest=manifest, manifest_size=len(manifest))
    made = plan(connection=_CONNECTION, update=_UPDATE, commit=commit, triggers=read_triggers(TRIGGERS))
    if made.failed:
        raise ValueError(made.reason)
    return [
        request.model_copy(update={"package": PACKAGE, "status_url": _status_url(request.id)})
        for request in made.requests
    ]


def _status_url(execution: str) -> str:
    query = "expires=1780000000&signature=c2lnbmF0dXJl"
    return f"https://push.example/api/v1/executions/{execution}/status?{query}"


def reports(execution: str) -> list[dict[str, Any]]:
    """Return the reports of a runner about an execution, with all fields in the last."""
    page = {"url": "https://ml.example/runs/71", "runner": "gpu-7 (runner 2.4)"}
    moments = {"accepted": "12:31:05", "running": "12:31:40", "succeeded": "13:04:12"}
    made = [
        {"id": execution, "state": state, "at": f"2026-05-04T{moment}Z", "sequence": number, **page}
        for number, (state, moment) in enumerate(moments.items(), 1)
    ]
    made[-1] |= {
        "summary": "accuracy 0.93, 0.02 better than main",
        "log_url": "https://ml.example/runs/71/log",
        "metrics": {"accuracy": 0.93, "loss": 0.21},
        "outputs": [{"name": "model", "url": "s3://acme-models/churn/71/model.pkl"}],
    }
    return made


def _cancelled(request: ExecutionRequest) -> ExecutionCancelled:
    """Return the message that cancels a request."""
    return ExecutionCancelled(
        id=cancel_id(request.id, 0),
        execution=request.id,
        redrive=0,
        project=request.project,
        connection=request.connection,
        delivery=request.delivery,
        trigger=request.trigger,
        requested_at=datetime(2026, 5, 4, 12, 40, tzinfo=UTC),
    )


def messages() -> dict[str, list[Any]]:
    """Return the examples of each schema, by its name."""
    names = tuple(request.trigger for request in requests())
    failure = TriggerFailure(trigger="train@main", reason="step train, parameter seed: x is not an integer")
    return {
        "execution-request": [request.model_dump(mode="json") for request in requests()],
        "execution-status": reports(requests()[0].id),
        "execution-cancelled": [_cancelled(requests()[0]).model_dump(mode="json")],
        "push-fetched": [
            event(
                "push.fetched",
                connection=_CONNECTION,
                update=_UPDATE,
                state="planned",
                reason="3 execution requests",
                triggers=names,
            ).model_dump(mode="json")
        ],
        "delivery-failed": [
            event(
                "delivery.failed",
                connection=_CONNECTION,
                update=_UPDATE,
                state="failed",
                reason=f"trigger {failure.trigger}: {failure.reason}; 2 execution requests",
                triggers=names[1:],
                failures=(failure,),
            ).model_dump(mode="json")
        ],
    }
