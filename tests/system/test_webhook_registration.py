"""A webhook is registered at the provider, repaired, and removed with its connection."""

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.cli.api_client import ApiError
from testing.provider_apis.fake import serving
from testing.provider_apis.github import FakeGitHub
from testing.service import Project, Service, run_pushgate, wait_for

TOKEN = "github_pat_canary_81f2"
FOREIGN = {"id": 7, "active": False, "events": ["push"], "config": {"url": "https://other.example/hooks/c1"}}


@pytest.fixture
def github(project: Project) -> Iterator[FakeGitHub]:
    """Serve GitHub's API with the project's repository and a foreign webhook."""
    fake = FakeGitHub(tokens={TOKEN: {project.name}}, hooks={project.name: [{**FOREIGN}]})
    with serving(fake):
        yield fake


def connected(service: Service, github: FakeGitHub, project: Project, token: str = TOKEN) -> Any:
    """Add an identity, and connect the repository with it."""
    api_url = f"{github.url}/api/v3"
    body = {"name": "acme-bot", "provider": "github", "token": token, "api_url": api_url}
    service.api.send("POST", "/identities", body)
    return service.connect(project.url, "train@main", identity="acme-bot")


def doctor(service: Service, *arguments: str) -> tuple[int, list[Any]]:
    """Run the command; return its exit status and the webhooks that it has checked."""
    done = run_pushgate("doctor", "--json", *arguments, service=service)
    return done.returncode, json.loads(done.stdout)["items"]


def test_a_webhook_is_registered_repaired_and_removed(
    service: Service, github: FakeGitHub, project: Project
) -> None:
    """Its ping arrives; each fault is found and repaired at once; a foreign webhook survives all of it."""
    made = connected(service, github, project)
    hooks = github.hooks[project.name]
    assert doctor(service)[1][0]["differences"] == ["missing"]
    path = f"/connections/{made['id']}/webhook"
    registered = service.api.send("POST", path, wait=15)
    assert registered["reason"] is None
    [ours] = hooks[1:]
    assert (registered["webhook"], registered["url"]) == (str(ours["id"]), made["hook_url"])
    assert ours["config"]["secret"] == made["secret"]
    [*_, ping] = service.api.get("/deliveries", connection=made["id"])["items"]
    assert (ping["event"], ping["verdict"]) == ("ping", "ignored")
    health = {"health": health_of(service, made)}
    assert doctor(service) == (
        0,
        [{**registered, **named(made), **health, "checked_at": now_of(service, path)}],
    )

    ours.update(active=False, events=["push"])
    hooks.append({**ours, "id": 5000})
    status, [found] = doctor(service, made["id"])
    assert (status, found["differences"]) == (1, ["switched off", "missing events", "doubled"])
    assert metric(service, 'pushgate_webhooks{state="differs"}') == 1
    assert [one["state"] for one in found["health"]["findings"][:3]] == ["failing", "warning", "warning"]
    assert found["health"] == health_of(service, made)
    assert doctor(service, made["id"], "--fix")[0] == 0
    wait_for(
        lambda: service.api.get(path)["redeliveries"]["checked_at"],
        "the log is searched for what failed before the repair",
    )
    assert (hooks[0], len(hooks), hooks[1]["active"]) == (FOREIGN, 2, True)
    assert metric(service, 'pushgate_webhooks{state="ok"}') == 1
    assert metric(service, "pushgate_webhook_repairs_total") == 1

    config = hooks[1]["config"]
    config["url"] = made["hook_url"].replace("http:", "https:")
    del config["secret"]
    repaired(service, github, made, ["wrong URL", "no secret"])
    hooks.pop()
    repaired(service, github, made, ["missing"])

    service.api.send("DELETE", f"/connections/{made['id']}")
    wait_for(lambda: hooks == [FOREIGN], "the webhook is removed")
    assert TOKEN not in json.dumps(service.log())


def repaired(service: Service, github: FakeGitHub, made: Any, faults: list[str]) -> None:
    """Check that the command finds the faults and repairs them at once."""
    assert doctor(service, made["id"])[1][0]["differences"] == faults
    assert doctor(service, made["id"], "--fix")[0] == 0
    [foreign, ours] = github.hooks[made["name"]]
    assert (foreign, ours["config"]["url"]) == (FOREIGN, made["hook_url"])
    assert ours["config"]["secret"] == made["secret"]


def named(connection: Any) -> dict[str, Any]:
    """Return what the command shows of a connection."""
    return {key: connection[key] for key in ("id", "name", "provider")}


def health_of(service: Service, connection: Any) -> Any:
    """Return the health of a connection, once its remote was read."""
    path = f"/connections/{connection['id']}"
    wait_for(lambda: service.api.get(path)["remote"]["readable"], "the remote is read")
    return service.api.get(path)["health"]


def metric(service: Service, name: str) -> float:
    """Return the value of a sample."""
    with urllib.request.urlopen(f"{service.url}/metrics") as answered:  # noqa: S310 - our own gateway
        [line] = [line for line in answered.read().decode().splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[-1])


def now_of(service: Service, path: str) -> str:
    """Return when the webhook was last checked."""
    checked_at: str = service.api.get(path)["checked_at"]
    return checked_at


def test_connect_registers_the_webhook(service: Service, github: FakeGitHub, project: Project) -> None:
    """Nothing is left to do at the provider; where it refuses, the connection stays, with what to do."""
    connected(service, github, project)
    connect = ("connect", project.url, "--provider=github", "--identity=acme-bot", "--register")
    done = run_pushgate(*connect, "--project=a", service=service)
    said = r"✓ The webhook is registered at the provider\. The test delivery arrived after \d+\.\d s\."
    assert re.search(said, done.stdout)
    assert "Next:" not in done.stdout
    assert len(github.hooks[project.name]) == 2
    github.readers.add(TOKEN)
    done = run_pushgate(*connect, "--project=b", service=service)
    assert "the webhook is not registered: acme-bot needs the right" in done.stderr
    assert (done.returncode, "Next:" in done.stdout) == (0, True)
    done = run_pushgate(*connect[:3], "--register", "--project=c", service=service)
    assert (done.returncode, "--register needs an identity" in done.stderr) == (1, True)


def test_a_missing_right_is_named(service: Service, github: FakeGitHub, project: Project) -> None:
    """The reason stays with the connection until a check succeeds; what the token may do is shown."""
    github.readers.add(TOKEN)
    github.scopes[TOKEN] = "public_repo"
    github.ends[TOKEN] = "2100-01-01 00:00:00 UTC"
    made = connected(service, github, project)
    bot = wait_for(
        lambda: (found := service.api.get("/identities/acme-bot"))["checked_at"] and found,
        "the token is checked",
    )
    assert (bot["rights"], bot["expires_at"], bot["reason"]) == (
        ["public_repo"],
        "2100-01-01T00:00:00Z",
        None,
    )
    path = f"/connections/{made['id']}/webhook"
    refused = service.api.send("POST", path, wait=15)
    assert refused["reason"].startswith("acme-bot needs the right “Webhooks: read and write” at 127.0.0.1 (")
    assert service.api.get(path) == refused
    findings = service.api.get(f"/connections/{made['id']}")["health"]["findings"]
    assert "may not register webhooks: its rights are public_repo." in json.dumps(findings)
    assert doctor(service, made["id"])[0] == 1
    done = run_pushgate("doctor", made["id"], service=service)
    assert (
        f"The webhook could not be checked: {refused['reason']}. Correct the cause, then run" in done.stdout
    )
    github.readers.clear()
    assert service.api.send("POST", path, wait=15)["reason"] is None
    service.api.send("PATCH", "/identities/acme-bot", {"token": "github_pat_revoked"})
    wait_for(lambda: service.api.get("/identities/acme-bot")["reason"], "the token is refused")
    [found] = doctor(service)[1]
    assert found["health"]["state"] == "failing"
    assert "The identity acme-bot does not work: " in json.dumps(found["health"]["findings"])


def test_a_connection_without_an_identity_says_what_to_do(service: Service, project: Project) -> None:
    """Nothing is requested of the provider."""
    made = service.connect(project.url, "train@main")
    with pytest.raises(ApiError, match="has no identity: add one, and set it on the connection"):
        service.api.send("POST", f"/connections/{made['id']}/webhook")
    with pytest.raises(ApiError, match="no webhook was registered"):
        service.api.get(f"/connections/{made['id']}/webhook")
