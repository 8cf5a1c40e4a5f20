"""Each failure is shown as a reason on the delivery, and the gateway continues."""

import resource
from pathlib import Path

import pytest

from testing.git_host import GitHost
from testing.ports import free_ports
from testing.service import VALOHAI_YAML, Project, Service, wait_for

NO_COMMAND = "- step:\n    name: train\n    image: python\n"
BROKEN_YAML = "- step:\n    name: train\n   image: python\n"


def test_a_push_without_triggers_is_fetched_and_nothing_more(service: Service, project: Project) -> None:
    """The reason says so."""
    connection = service.connect(project.url)
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    [update] = service.settled(answer["delivery"])["updates"]
    assert (update["state"], update["reason"]) == ("planned", "fetched; the connection has no triggers")
    assert service.api.get("/executions")["items"] == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"valohai.yaml": BROKEN_YAML}, "valohai.yaml, line 3, column"),
        ({"valohai.yaml": NO_COMMAND}, "'command' is a required property"),
        ({"valohai.yaml": "- step:\n    name: other\n    image: python\n    command: a\n"}, "no step train"),
        ({"valohai.yaml": "x" * 300_000}, "has 300000 bytes"),
    ],
)
def test_a_bad_manifest_is_a_reason(
    service: Service, project: Project, files: dict[str, str], expected: str
) -> None:
    """It has the line and column, or the existing steps; the next good push runs."""
    connection = service.connect(project.url, "train@main")
    bad = project.push("Bad", files)
    good = project.push("Good", {"valohai.yaml": VALOHAI_YAML})
    answers = [
        service.deliver(connection, project.payload(old, new))[1]
        for old, new in ((project.first, bad), (bad, good))
    ]
    [update] = service.settled(answers[0]["delivery"])["updates"]
    assert update["state"] == "failed"
    assert expected in update["reason"]
    service.settled(answers[1]["delivery"])
    [execution] = service.api.get("/executions")["items"]
    assert execution["message"]["commit"]["id"] == good


def test_a_commit_without_a_manifest_is_a_reason(service: Service, project: Project) -> None:
    """Where a trigger asks for a step of it."""
    connection = service.connect(project.url, "train@main", yaml_path="deep/valohai.yaml")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    [update] = service.settled(answer["delivery"])["updates"]
    assert (update["state"], update["reason"]) == ("failed", "the commit has no file deep/valohai.yaml")


def test_a_commit_that_the_remote_does_not_have_is_gone(service: Service, project: Project) -> None:
    """The fetch is retried for a while, because webhooks can be early; then the push has failed."""
    connection = service.connect(project.url, "train@main")
    _, answer = service.deliver(connection, project.payload(project.first, "d" * 40))
    [update] = service.settled(answer["delivery"])["updates"]
    assert (update["state"], update["reason"]) == ("gone", f"the remote no longer has {'d' * 40}")


def test_a_commit_that_was_pushed_over_still_runs(service: Service, project: Project) -> None:
    """The branch was forced elsewhere before the worker looked; the pushed id can still be fetched."""
    connection = service.connect(project.url, "train@main")
    lost = project.push("Lost", {"train.py": "print('lost')\n"})
    project.tree.git("reset", "--quiet", "--hard", project.first)
    kept = project.push("Kept", {"train.py": "print('kept')\n"})
    for before, after in ((project.first, lost), (lost, kept)):
        service.deliver(connection, project.payload(before, after))
    executions = wait_for(
        lambda: found if len(found := service.api.get("/executions")["items"]) == 2 else None,
        "both requests are there",
    )
    assert [one["message"]["commit"]["id"] for one in executions] == [kept, lost]


def test_a_remote_that_is_down_is_tried_again(service: Service, tmp_path: Path) -> None:
    """The delivery is accepted and says why it waits; once the remote is up, its request comes."""
    [port] = free_ports(1)
    with GitHost(tmp_path / "git", port=port) as host:
        project = Project(host, tmp_path)
        pushed = project.push("Second", {"train.py": "print(2)\n"})
    connection = service.connect(project.url, "train@main")
    status, answer = service.deliver(connection, project.payload(project.first, pushed))
    assert status == 202
    reason = wait_for(
        lambda: service.api.get(f"/deliveries/{answer['delivery']}")["updates"][0]["reason"],
        "the reason is shown",
    )
    assert reason.startswith("the remote cannot be fetched: the host cannot be reached")
    with GitHost(tmp_path / "git", port=port):
        [update] = service.settled(answer["delivery"])["updates"]
        assert update["state"] == "planned"
    [execution] = service.api.get("/executions")["items"]
    assert execution["message"]["commit"]["id"] == pushed


def test_a_deleted_branch_runs_nothing(service: Service, project: Project) -> None:
    """The reason says that it was deleted."""
    connection = service.connect(project.url, "train@**")
    _, answer = service.deliver(connection, project.payload(project.first, None))
    [update] = service.settled(answer["delivery"])["updates"]
    assert (update["action"], update["state"]) == ("delete", "planned")
    assert service.api.get("/executions")["items"] == []


def test_an_annotated_tag_runs_its_commit(service: Service, project: Project) -> None:
    """The push names the tag object; the request names the commit behind it."""
    trigger = {"name": "release", "tags": ["v*"], "run": {"step": "train"}}
    connection = service.connect(project.url, triggers=[trigger])
    tag = project.push_tag("v1.0")
    _, answer = service.deliver(connection, project.payload(None, tag, ref="refs/tags/v1.0"))
    [update] = service.settled(answer["delivery"])["updates"]
    assert update["reason"] == "1 execution request"
    [execution] = service.api.get("/executions")["items"]
    assert execution["message"]["commit"]["id"] == project.first
    assert execution["message"]["ref"] == {"name": "v1.0", "kind": "tag"}


def test_work_for_a_deleted_connection_ends(service: Service, tmp_path: Path) -> None:
    """A push that waits for an unavailable remote ends with its connection."""
    connection = service.connect("http://127.0.0.1:9/acme/digits.git", "train@main")
    with GitHost(tmp_path / "git") as host:
        project = Project(host, tmp_path)
    body = project.payload(None, project.first).replace(project.url.encode(), connection["url"].encode())
    _, answer = service.deliver(connection, body)
    service.api.send("DELETE", f"/connections/{connection['id']}")
    [update] = service.settled(answer["delivery"])["updates"]
    assert (update["state"], update["reason"]) == ("failed", "the connection was deleted")


def test_sigterm_ends_with_exit_status_0(service: Service, project: Project) -> None:
    """Cleanly, without leaving a git process."""
    service.connect(project.url, "train@main")
    assert service.stop() == 0


def test_a_disk_that_is_full_is_a_503_until_there_is_room_again(service: Service, project: Project) -> None:
    """Nothing is acknowledged meanwhile, and no restart is needed."""
    connection = service.connect(project.url, "train@main")
    pid = next(line["pid"] for line in service.log() if line["event"] == "listening")
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)

    def deliver(branch: str) -> int:
        status, _ = service.deliver(connection, project.payload(None, project.first, f"refs/heads/{branch}"))
        return status

    assert deliver("before") == 202
    # The process sees the same error: writes past the end of its files fail.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, before[1]))
    assert [deliver(f"full-{number}") for number in range(3)] == [503] * 3
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    assert [deliver(f"after-{number}") for number in range(3)] == [202] * 3
    kept = service.api.get("/deliveries")["items"]
    assert sorted(one["updates"][0]["name"] for one in kept) == ["after-0", "after-1", "after-2", "before"]
