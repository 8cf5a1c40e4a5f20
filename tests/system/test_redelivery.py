"""Deliveries that failed during an outage are requested of the provider again, and arrive."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.cli.api_client import ApiError
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from testing.service import Project, Service, run_pushgate, wait_for
from tests.dashboard.getting import got, signed_in
from tests.test_metrics import metrics

TOKEN = "github_pat_canary_5c40"


@pytest.fixture
def github(project: Project) -> Iterator[FakeGitHub]:
    """Serve GitHub's API with the project's repository."""
    fake = FakeGitHub(tokens={TOKEN: {project.name}})
    with serving(fake):
        yield fake


def registered(service: Service, github: FakeGitHub, project: Project) -> Any:
    """Connect the repository, and register its webhook."""
    body = {"name": "bot", "provider": "github", "token": TOKEN, "api_url": f"{github.url}/api/v3"}
    service.api.send("POST", "/identities", body)
    made = service.connect(project.url, "train@main", identity="bot")
    assert service.api.send("POST", f"/connections/{made['id']}/webhook", wait=15)["reason"] is None
    return made


def redeliver(service: Service, *arguments: str) -> Any:
    """Run the command; return what it shows of the one connection."""
    done = run_pushgate("redeliver", "--json", *arguments, service=service)
    [shown] = json.loads(done.stdout)["items"]
    return shown


def test_50_of_2000_missed_deliveries_are_recovered(
    service: Service, github: FakeGitHub, project: Project
) -> None:
    """After an outage of an hour: those that matter, each once, with fewer than 120 requests."""
    made = registered(service, github, project)
    service.stop()
    [hook] = github.hooks[project.name]
    began_at, wanted = datetime.now(UTC) - timedelta(hours=1), set()
    for number in range(1900):
        at = began_at + timedelta(seconds=number * 1.8)
        if number % 38 == 0:
            ref = f"refs/heads/b{number}"
            body = project.payload(project.first, None, ref)
            wanted.add(github.log(hook, "push", body, 502, at=at).guid)
        else:
            github.log(hook, "issues", b"{}", 502, at=at)
    for _ in range(50):
        missed = github.log(hook, "pull_request", b"{}", 502)
        github.log(hook, "pull_request", b"{}", 200, guid=missed.guid)
    assert len(github.deliveries) > 2000
    github.requests.clear()
    service.start(urlsplit(service.url).port or 0)
    shown = redeliver(service, made["id"], "--since", "2h")
    assert (shown["requested"], shown["given_up"], shown["reason"]) == (50, 0, None)
    stored = service.api.get("/deliveries", connection=made["id"], limit=100)["items"]
    arrived = {one["provider_delivery_id"] for one in stored if one["verdict"] == "accepted"}
    assert arrived == wanted
    assert len(github.requests) < 120
    assert metrics(service)[1]["pushgate_redeliveries_requested_total", "github"] == 50
    shown = service.api.get(f"/connections/{made['id']}/webhook")["redeliveries"]
    assert (shown["requested"], shown["reason"]) == (50, None)
    page = got(f"{service.url}/connections/{made['id']}", signed_in(service))[1]
    assert "requested again in the last 8 days: 50, the last" in page
    assert "Request failed deliveries again" in page
    assert TOKEN not in json.dumps(service.log())


def test_a_start_after_an_outage_requests_what_failed(
    service: Service, github: FakeGitHub, project: Project
) -> None:
    """Nobody has to request it. What was never registered has no log."""
    made = registered(service, github, project)
    other = service.connect(project.url, "train@main", identity="bot")
    with pytest.raises(ApiError, match=r"no log of deliveries is known for .*: register its webhook"):
        service.api.send("POST", f"/connections/{other['id']}/webhook/redeliver")
    service.kill()
    [hook] = github.hooks[project.name]
    body = project.payload(project.first, None, "refs/heads/gone")
    missed = github.log(hook, "push", body, 502)
    service.start(urlsplit(service.url).port or 0)

    def arrived() -> bool:
        found = service.api.get("/deliveries", connection=made["id"])["items"]
        return missed.guid in {one["provider_delivery_id"] for one in found}

    wait_for(arrived, "the missed delivery arrives")
    assert any(entry["event"].startswith("webhooks were not received") for entry in service.log())
