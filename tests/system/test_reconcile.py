"""Pushes whose webhook never arrived, on a real remote, with the real gateway."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testing.git_host import GitHost
from testing.service import Project, Service, run_pushgate, wait_for
from tests.system.test_every_provider import TRIGGER, deliver

ANY_BRANCH = {"name": "train", "branches": ["*"], "run": {"step": "train"}}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Start a gateway that reconciles only on request and at its start."""
    with Service(tmp_path / "data", RECONCILE_GRACE="0") as service:
        yield service


def connect(service: Service, url: str, **more: Any) -> Any:
    """Connect a repository, and wait until its refs are known."""
    made = service.connect(url, **{"triggers": [ANY_BRANCH], **more})
    wait_for(lambda: reconciliation(service, made)["reconciled_at"], "the first reconciliation has ended")
    return made


def reconciliation(service: Service, connection: Any) -> Any:
    """Return the state of a connection's reconciliations."""
    return service.api.get(f"/connections/{connection['id']}")["reconciliation"]


def commits(service: Service) -> list[str]:
    """Return the commits of all execution requests, in order."""
    items = service.api.get("/executions")["items"]
    return [one["message"]["commit"]["id"] for one in reversed(items)]


def test_what_was_there_before_is_learned_and_not_run(service: Service, project: Project) -> None:
    """Connecting a repository starts nothing."""
    connection = connect(service, project.url)
    assert service.fetched(connection) == []
    assert service.api.get("/deliveries")["items"] == []


def test_a_push_that_no_webhook_reported_is_recovered(service: Service, project: Project) -> None:
    """Existing and new branches, and tags; once each, however many reconciliations run."""
    connection = connect(service, project.url)
    second = project.push("Second", {"train.py": "print(2)\n"})
    project.tree.git("tag", "-a", "-m", "one", "v1")
    project.tree.push("main:refs/heads/new", "v1")
    tag = project.tree.git("rev-parse", "v1")

    found = {update["ref"]: update for update in service.fetched(connection)}
    assert {ref: (update["before"], update["after"], update["peeled"]) for ref, update in found.items()} == {
        "refs/heads/main": (project.first, second, None),
        "refs/heads/new": (None, second, None),
        "refs/tags/v1": (None, tag, second),
    }
    assert {update["state"] for update in found.values()} == {"planned"}
    assert commits(service) == [second, second]
    assert service.fetched(connection) == []


def test_the_webhook_that_comes_after_the_reconciliation_is_a_duplicate(
    service: Service, project: Project
) -> None:
    """In the opposite order, the reconciliation finds nothing new."""
    connection = connect(service, project.url)
    second = project.push("Second", {"train.py": "print(2)\n"})
    service.fetched(connection)
    assert service.deliver(connection, project.payload(project.first, second))[1]["verdict"] == "duplicate"
    third = project.push("Third", {"train.py": "print(3)\n"})
    service.deliver(connection, project.payload(second, third))
    assert service.fetched(connection) == []
    assert len(service.api.get("/deliveries")["items"]) == 3


def test_a_branch_that_is_gone_is_reported_and_runs_nothing(service: Service, project: Project) -> None:
    """A deletion is an update like any other."""
    project.tree.push("main:refs/heads/old")
    connection = connect(service, project.url)
    project.tree.push(":refs/heads/old")
    [update] = service.fetched(connection)
    assert (update["ref"], update["action"], update["state"]) == ("refs/heads/old", "delete", "planned")
    assert commits(service) == []


def test_pushes_before_the_first_look_run(service: Service, project: Project) -> None:
    """A first look that sees the push does not make its webhook a duplicate."""
    project.tree.push("main:refs/heads/new")
    connection = connect(service, project.url)
    payload = project.payload(None, project.first, "refs/heads/new")
    status, answer = service.deliver(connection, payload)
    assert (status, answer["verdict"]) == (202, "accepted")
    service.settled(answer["delivery"])
    assert commits(service) == [project.first]


def test_a_delivery_without_refs_has_the_remote_looked_at(service: Service, project: Project) -> None:
    """Azure DevOps with "Resource details to send: None" reports only that something was pushed."""
    connection = connect(service, project.url, provider="azure-devops", triggers=[TRIGGER])
    second = project.push("Second", {"train.py": "print(2)\n"})
    body = (
        b'{"subscriptionId": "s1", "notificationId": 7, "id": "e1", "eventType": "git.push",'
        b' "resource": {"pushId": 4}}'
    )
    _, answer = deliver(service, connection, "azure-devops", body)
    assert answer["verdict"] == "accepted"
    wait_for(lambda: commits(service) == [second], "the push is found and planned")
    reason = service.api.get(f"/deliveries/{answer['delivery']}")["reason"]
    assert reason == (
        "all refs were compared with the remote's: delivery"
        f" {reconciliation(service, connection)['delivery']}"
        " has what was found"
    )


def test_a_remote_that_cannot_be_asked_is_a_reason(
    service: Service, githost: GitHost, tmp_path: Path
) -> None:
    """The connection has it, and so does the delivery that requested the look."""
    project = Project(githost, tmp_path)
    connection = connect(service, project.url, provider="azure-devops", triggers=[TRIGGER])
    (githost.folder / "acme" / "digits.git").rename(tmp_path / "elsewhere")
    _, answer = deliver(
        service,
        connection,
        "azure-devops",
        b'{"subscriptionId": "s1", "notificationId": 8, "id": "e2", "eventType": "git.push", "resource": {}}',
    )
    wait_for(lambda: reconciliation(service, connection)["reason"], "the reconciliation has failed")
    assert "the repository does not exist" in reconciliation(service, connection)["reason"]
    assert "failed so far" in service.api.get(f"/deliveries/{answer['delivery']}")["reason"]
    done = run_pushgate("fetch", connection["id"], service=service)
    assert done.returncode == 1
    assert "the repository does not exist" in done.stderr


def test_a_remote_that_shows_nothing_at_all_deletes_nothing(
    service: Service, project: Project, githost: GitHost
) -> None:
    """After a server shows no refs for a minute, its branches must not count as new."""
    connection = connect(service, project.url)
    githost.create("empty.git")
    ours, empty = githost.folder / "acme" / "digits.git", githost.folder / "empty.git"
    ours.rename(ours.with_suffix(".kept"))
    empty.rename(ours)
    service.api.send("POST", f"/connections/{connection['id']}/fetch", {})
    wait_for(lambda: reconciliation(service, connection)["reason"], "the reconciliation has failed")
    assert "no branches or tags" in reconciliation(service, connection)["reason"]


def test_another_url_is_learned_from_the_start(
    service: Service, project: Project, githost: GitHost, tmp_path: Path
) -> None:
    """The branches of the other repository are not pushes."""
    connection = connect(service, project.url)
    other = Project(githost, tmp_path, "acme/other")
    before = reconciliation(service, connection)["reconciled_at"]
    service.api.send("PATCH", f"/connections/{connection['id']}", {"url": other.url})
    wait_for(
        lambda: reconciliation(service, connection)["reconciled_at"] not in {None, before},
        "the new remote is known",
    )
    second = other.push("Second", {"train.py": "print(2)\n"})
    assert [update["after"] for update in service.fetched(connection)] == [second]
    assert commits(service) == [second]


def test_fetch_prints_what_it_found(service: Service, project: Project) -> None:
    """`pushgate fetch` replaces the former "Fetch repository"."""
    connection = connect(service, project.url)
    nothing = run_pushgate("fetch", connection["id"], service=service)
    assert (nothing.returncode, nothing.stdout) == (
        0,
        "No ref has moved since the last delivery or reconciliation.\n",
    )
    project.push("Second", {"train.py": "print(2)\n"})
    found = run_pushgate("fetch", connection["id"], service=service)
    assert found.returncode == 0
    assert "main" in found.stdout


def test_reconciliations_come_by_themselves(tmp_path: Path, project: Project) -> None:
    """They run without a request."""
    with Service(tmp_path / "data", RECONCILE_EVERY="10", RECONCILE_GRACE="0") as service:
        connect(service, project.url)
        second = project.push("Second", {"train.py": "print(2)\n"})
        wait_for(lambda: commits(service) == [second], "the push is found")
