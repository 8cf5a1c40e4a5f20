"""From a push to its verdict: what the receiver of a connection's verdicts gets, and when."""

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.provider_apis import standard_webhook
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from testing.receivers import FakeReceiver
from testing.service import Project, Service, run_pushgate, wait_for

SECRET = standard_webhook.new_secret()
TOKEN = "github_pat_canary_77c0"


@pytest.fixture
def receiver() -> Iterator[FakeReceiver]:
    """Serve a receiver of signed webhooks."""
    fake = FakeReceiver(secret=SECRET)
    with serving(fake):
        yield fake


def verdicts(receiver: FakeReceiver) -> list[tuple[str, str, str]]:
    """Return what was received, in order: context, commit and state."""
    received = [event["data"] for event in receiver.received.values()]
    return [(data["context"], data["commit"], data["state"]) for data in received]


def report(execution: Any, state: str, sequence: int, **more: Any) -> None:
    """Report about an execution, at the URL in its request."""
    body = {"id": execution["id"], "state": state, "at": "2026-11-30T12:00:00Z", "sequence": sequence, **more}
    request = urllib.request.Request(  # noqa: S310 - our own gateway
        execution["message"]["status_url"],
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answered:  # noqa: S310 - our own gateway
        assert answered.status == 200


def test_every_push_gets_its_verdict(service: Service, project: Project, receiver: FakeReceiver) -> None:
    """Waiting, running, succeeded, each once and signed; the commit that cannot be planned has its error."""
    hook = {"url": receiver.webhook, "secret": SECRET}
    made = service.connect(project.url, "train@main", status_webhook=hook)
    assert made["has_status_webhook"]
    assert SECRET not in json.dumps(made)
    commit = project.first
    _, pushed = service.deliver(made, project.payload(None, commit))
    context = "pushgate/train@main"
    wait_for(lambda: verdicts(receiver), "the first verdict arrives")
    assert verdicts(receiver) == [(context, commit, "waiting")]
    [execution] = service.api.get("/executions", delivery=pushed["delivery"])["items"]
    report(execution, "running", 1)
    wait_for(lambda: len(receiver.received) == 2, "the second verdict arrives")
    report(execution, "succeeded", 2, summary="accuracy 0.98", metrics={"accuracy": 0.98})
    wait_for(lambda: len(receiver.received) == 3, "the last verdict arrives")
    assert verdicts(receiver)[1:] == [(context, commit, "running"), (context, commit, "succeeded")]
    last = list(receiver.received.values())[-1]["data"]
    assert last["description"] == "succeeded: accuracy 0.98"
    assert last["url"] == f"{service.url}/deliveries/{pushed['delivery']}"
    assert "shows succeeded as the verdict" in run_pushgate("explain", commit, service=service).stdout

    broken = project.push("break it", {"valohai.yaml": "- step: {name: [\n"})
    service.deliver(made, project.payload(commit, broken))
    wait_for(lambda: len(receiver.received) == 4, "the verdict on the broken commit arrives")
    assert verdicts(receiver)[-1] == (context, broken, "error")
    assert "valohai.yaml, line" in list(receiver.received.values())[-1]["data"]["description"]
    assert SECRET not in json.dumps(service.log())


def test_github_shows_the_verdict_of_each_trigger(service: Service, project: Project) -> None:
    """As an identity; a required trigger that the push does not match permits a merge."""
    github = FakeGitHub(tokens={TOKEN: {project.name}})
    with serving(github):
        api_url = f"{github.url}/api/v3"
        body = {"name": "acme-bot", "provider": "github", "token": TOKEN, "api_url": api_url}
        service.api.send("POST", "/identities", body)
        triggers = [
            {"name": "train", "branches": ["main"], "run": {"step": "train"}},
            {"name": "docs", "paths": ["docs/"], "run": {"step": "train"}, "required": True},
        ]
        made = service.connect(project.url, identity="acme-bot", triggers=triggers)
        service.deliver(made, project.payload(None, project.first))
        wanted = {
            (project.first, "pushgate/train"): "pending",
            (project.first, "pushgate/docs"): "success",
        }
        wait_for(lambda: github.statuses == wanted, "GitHub shows both verdicts")
    assert TOKEN not in json.dumps(service.log())
