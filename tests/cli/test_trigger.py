"""The command `trigger push`, which plays a connection's provider."""

import json
from pathlib import Path
from typing import Any

import pytest

from testing.service import Project, Service, wait_for
from testing.service import run_pushgate as run

TRIGGER = {"name": "train", "branches": ["main"], "run": {"step": "train"}}


def push(service: Service, *arguments: str, secret: str) -> Any:
    """Run `trigger push --json`, and return its output."""
    variables = {"WEBHOOK_SECRET": secret}
    done = run("trigger", "push", *arguments, "--json", service=service, variables=variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("provider", ["github", "gitlab", "bitbucket"])
def test_a_push_is_sent_as_the_provider_would(service: Service, project: Project, provider: str) -> None:
    """With the known position of the branch, or with another commit; a repetition is a duplicate."""
    made = service.connect(project.url, name="digits", provider=provider, triggers=[TRIGGER])
    path = f"/connections/{made['id']}/refs"
    wait_for(lambda: service.api.get(path)["items"], "the repository was read")
    first = push(service, "digits", "--branch=main", secret=made["secret"])
    assert (first["status"], first["verdict"]) == (202, "accepted")
    [update] = service.settled(first["delivery"])["updates"]
    assert (update["ref"], update["after"], update["state"]) == ("refs/heads/main", project.first, "planned")
    assert push(service, "digits", "--branch=main", secret=made["secret"])["verdict"] == "duplicate"

    second = project.push("Second", {"train.py": "print(2)\n"})
    sent = push(service, made["id"], "--branch=main", f"--commit={second}", secret=made["secret"])
    [update] = service.settled(sent["delivery"])["updates"]
    assert (update["before"], update["after"], update["state"]) == (project.first, second, "planned")
    [execution] = service.api.get("/executions", delivery=sent["delivery"])["items"]
    assert execution["message"]["commit"]["id"] == second


def test_a_push_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    """On standard error; a refused webhook is shown, and the exit status is 1."""
    commit = f"--commit={'a' * 40}"
    with Service(tmp_path / "data", ROLE="web") as web:
        web.connect("https://github.example/acme/digits.git", name="digits")

        def refusal(*options: str) -> str:
            done = run("trigger", "push", "digits", *options, service=web)
            assert done.returncode == 1
            return done.stderr + done.stdout

        assert "give the connection's secret" in refusal("--branch=main")
        assert "the default branch is not known" in refusal("--secret=x")
        assert "the position of main is not known" in refusal("--secret=x", "--branch=main")
        assert "give all 40 or 64 hex digits" in refusal("--secret=x", "--branch=main", "--commit=abc")
        assert "401 not verified" in refusal("--secret=x", "--branch=main", commit)
