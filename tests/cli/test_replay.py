"""The command `replay`: deliveries by their ids, and ranges of them."""

import json
from typing import Any

import pytest

from testing.service import Project, Service
from testing.service import run_pushgate as run


def answer(service: Service, *arguments: str) -> Any:
    """Run `replay --json`, and return its output."""
    done = run("replay", *arguments, "--json", service=service)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_range_is_replayed_by_its_outcome(service: Service, project: Project) -> None:
    """Oldest first; a dry run only lists, and what cannot be replayed is left out."""
    connection = service.connect(project.url, "missing@main", name="digits")
    second = project.push("Second", {"train.py": "print(2)\n"})
    third = project.push("Third", {"train.py": "print(3)\n"})
    moves = [(project.first, second), (second, third), (project.first, second)]
    sent = [service.deliver(connection, project.payload(*move))[1]["delivery"] for move in moves]
    for delivery in sent:
        service.settled(delivery)
    service.deliver(connection, b'{"zen": "Keep it."}', event="ping")

    failed = ("--since=1h", "--connection=digits", "--outcome=failed")
    found = answer(service, *failed, "--dry-run")
    assert [one["id"] for one in found["deliveries"]] == sent[:2]
    assert "2 deliveries would be replayed" in run("replay", *failed, "--dry-run", service=service).stdout
    assert service.api.get(f"/deliveries/{sent[0]}")["updates"][0]["attempts"] == []

    trigger = {"name": "train", "branches": ["main"], "run": {"step": "train"}}
    service.api.send("PATCH", f"/connections/{connection['id']}", {"triggers": [trigger]})
    assert answer(service, *failed) == {"dry_run": False, "replayed": sent[:2], "refused": []}
    for delivery in sent[:2]:
        assert service.settled(delivery)["updates"][0]["state"] == "planned"
    done = run("replay", *failed, service=service)
    assert (done.returncode, done.stdout) == (0, "No deliveries match these filters.\n")
    assert answer(service, "--since=1h", "--outcome=ran")["replayed"] == sent[:2]
    assert run("replay", sent[0], service=service).stdout == "1 delivery replayed.\n"
    done = run("replay", sent[2], service=service)
    assert (done.returncode, done.stdout) == (1, "0 deliveries of 1 replayed.\n")
    assert f"{sent[2]} was not replayed: this delivery has nothing to plan again" in done.stderr


@pytest.mark.parametrize("given", [(), ("id", "--since=1h"), ("id", "--outcome=failed")])
def test_a_replay_needs_either_ids_or_a_range(given: tuple[str, ...]) -> None:
    """So that nothing is replayed by mistake."""
    done = run("replay", *given, variables={"PUSHGATE_ADMIN_TOKEN": "x"})
    assert done.returncode == 1
    assert "give either the ids of deliveries, or --since" in done.stderr
