"""One webhook for an organisation: its repositories are listed and connected, and their pushes run."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.cli.api_client import ApiError
from testing.github import REPOSITORY_ID
from testing.provider_apis.fake import FakeRepository, serving
from testing.provider_apis.github import FakeGitHub
from testing.service import Project, Service, run_pushgate, wait_for

TOKEN = "github_pat_canary_c3d9"


@pytest.fixture
def github(project: Project) -> Iterator[FakeGitHub]:
    """Serve GitHub's API with an organisation of three repositories, of which one is on a git server."""
    digits = FakeRepository(
        id=str(REPOSITORY_ID), full_name=project.name, url=project.url, files=frozenset({"valohai.yaml"})
    )
    web = FakeRepository(id="2", full_name="acme/web", url=project.url.replace("digits", "web"))
    old = FakeRepository(id="3", full_name="acme/old", is_archived=True)
    fake = FakeGitHub(tokens={TOKEN: {"acme"}}, repositories=[digits, web, old])
    with serving(fake):
        yield fake


def test_an_organisations_repositories_are_connected_by_one_command(
    service: Service, github: FakeGitHub, project: Project
) -> None:
    """The webhook is registered, and the first push runs at the connection that the rule has made.

    After the source was deleted, the connection gets a webhook of its own.
    """
    server = project.url.removesuffix(f"/{project.name}.git")
    identity = {"name": "acme-bot", "provider": "github", "token": TOKEN, "api_url": f"{github.url}/api/v3"}
    service.api.send("POST", "/identities", identity)
    rule = ("--manifest", "--trigger=train@main", "--project=ml-{name}")
    add = ("source", "add", "github", f"--url={server}/acme", "--identity=acme-bot", *rule, "--register")
    done = run_pushgate(*add, service=service)
    assert (done.returncode, "registered at the provider" in done.stdout) == (0, True), done.stderr
    [hook] = github.hooks["acme"]

    def states() -> Any:
        found = service.api.get("/sources/acme/repositories")["items"]
        return {one["full_name"]: one["state"] for one in found}

    wait_for(
        lambda: states() == {"acme/digits": "connected", "acme/web": "ignored"}, "the rules have decided"
    )
    [connection] = service.api.get("/connections")["items"]
    assert (connection["name"], connection["project"]) == ("acme/digits", "ml-digits")

    commit = project.push("A better model", {"train.py": "print(2)\n"})
    asyncio.run(github.deliver(hook, "push", project.payload(project.first, commit)))
    [execution] = wait_for(lambda: service.api.get("/executions")["items"], "the push is planned")
    assert (execution["connection"], execution["message"]["commit"]["id"]) == (connection["id"], commit)
    web = json.loads(project.payload(None, commit))
    web["repository"] |= {"id": 2, "full_name": "acme/web", "clone_url": f"{server}/acme/web.git"}
    asyncio.run(github.deliver(hook, "push", json.dumps(web).encode()))

    def ignored() -> bool:
        newest = service.api.get("/deliveries", connection="acme")["items"][0]
        assert newest["verdict"] == "ignored"
        return bool(newest["reason"] == "web has no valohai.yaml on its default branch")

    wait_for(ignored, "the rules have decided again, because the push might have added the manifest")
    assert TOKEN not in json.dumps(service.log())

    path, source = f"/connections/{connection['id']}", service.api.get("/sources/acme")
    assert connection["source"] == {"id": source["id"], "name": "acme"}
    assert connection["hook_url"] == source["hook_url"]
    for task in ("rotate-secret", "webhook"):
        with pytest.raises(ApiError, match="arrive at the webhook of its source"):
            service.api.send("POST", f"{path}/{task}")
    service.api.send("DELETE", "/sources/acme")
    wait_for(lambda: github.hooks["acme"] == [], "the webhook is removed")
    assert service.api.get(path)["source"] is None
    own = service.api.send("POST", f"{path}/rotate-secret")
    assert service.deliver({**own, "path": f"/hooks/{own['id']}"}, b"{}", event="ping")[0] == 200
