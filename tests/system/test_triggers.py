"""What triggers do, from the webhook to the request."""

import json
from typing import Any

from testing.service import Project, Service, wait_for

MANIFEST = """\
- step:
    name: train
    image: docker.io/library/python:3.12
    command: python train.py {parameters}
    parameters:
      - name: epochs
        type: integer
      - name: rate
        type: float
        default: 0.1
- task:
    name: search
    step: train
    type: random_search
    execution-count: 4
    parameters:
      - name: epochs
        style: multiple
        rules: {items: [1, 2, 3]}
"""


def opened(project: Project, head: str, *, number: int = 7, fork: bool = False) -> bytes:
    """Return GitHub's payload of a pull request from topic into main."""
    ours = json.loads(project.payload(None, head))["repository"]
    body = {
        "action": "opened",
        "number": number,
        "pull_request": {
            "merged": False,
            "head": {"ref": "topic", "sha": head, "repo": {"id": 1 if fork else ours["id"]}},
            "base": {"ref": "main"},
        },
        "repository": ours,
    }
    return json.dumps(body).encode()


def updates(service: Service, answer: Any) -> Any:
    """Return the one ref update of a delivery, once it is settled."""
    [update] = service.settled(answer["delivery"])["updates"]
    return update


def test_a_pull_request_runs_at_its_head(service: Service, project: Project) -> None:
    """Once for each commit, and never from a fork that the trigger does not allow."""
    trigger = {"name": "check", "on": ["pull_request"], "branches": ["main"], "run": {"step": "train"}}
    connection = service.connect(project.url, triggers=[trigger])
    project.tree.git("checkout", "--quiet", "-b", "topic")
    head = project.tree.commit("Topic", {"train.py": "print(2)\n"})
    project.tree.push("topic")
    body = opened(project, head)
    _, answer = service.deliver(connection, body, event="pull_request")
    assert answer["verdict"] == "accepted"
    assert updates(service, answer)["state"] == "planned"
    assert service.deliver(connection, body, event="pull_request")[1]["verdict"] == "duplicate"
    _, forked = service.deliver(connection, opened(project, head, number=8, fork=True), event="pull_request")
    assert "from a fork" in updates(service, forked)["reason"]
    [execution] = service.api.get("/executions")["items"]
    message = execution["message"]
    assert message["commit"]["id"] == head
    assert message["ref"] == {"name": "topic", "kind": "branch"}
    assert message["pull_request"] == {
        "number": "7",
        "source": "topic",
        "target": "main",
        "from_fork": False,
    }


def test_a_pull_request_changes_what_its_target_lacks(service: Service, project: Project) -> None:
    """All its commits count, except those that the target has, whatever the default branch is."""
    project.tree.git("checkout", "--quiet", "-b", "release")
    project.push("Of the release", {"release.txt": "1"})
    project.tree.git("checkout", "--quiet", "-b", "topic")
    project.tree.commit("Its first commit", {"topic.txt": "1"})
    head = project.tree.commit("Its second commit", {"more.txt": "1"})
    project.tree.push("topic")
    triggers = [
        {"name": name, "on": ["pull_request"], "paths": [f"{name}.txt"], "run": {"step": "train"}}
        for name in ("release", "topic", "more")
    ]
    connection = service.connect(project.url, triggers=triggers)
    body = opened(project, head).replace(b'"base": {"ref": "main"}', b'"base": {"ref": "release"}')
    _, answer = service.deliver(connection, body, event="pull_request")
    said = {one["trigger"]: one["matched"] for one in updates(service, answer)["verdicts"]}
    assert said == {"release": False, "topic": True, "more": True}


def test_a_merge_group_runs_once_at_its_head(service: Service, project: Project) -> None:
    """Its branch is pushed as well, which runs nothing, in whichever order the two arrive."""
    triggers = [
        {"name": "queue", "on": ["merge_group"], "paths": ["topic.txt"], "run": {"step": "train"}},
        {"name": "push", "on": ["push"], "run": {"step": "train"}},
    ]
    connection = service.connect(project.url, triggers=triggers)
    name = f"gh-readonly-queue/main/pr-7-{project.first}"
    project.tree.git("checkout", "--quiet", "-b", name)
    head = project.tree.commit("Topic", {"topic.txt": "1"})
    project.tree.push(name)
    pushed = project.payload(None, head, f"refs/heads/{name}")
    _, of_branch = service.deliver(connection, pushed)
    body = {
        "action": "checks_requested",
        "merge_group": {"head_sha": head, "head_ref": f"refs/heads/{name}", "base_sha": project.first},
        "repository": json.loads(pushed)["repository"],
    }
    _, of_group = service.deliver(connection, json.dumps(body).encode(), event="merge_group")
    assert {one["trigger"]: one["matched"] for one in updates(service, of_branch)["verdicts"]} == {
        "queue": False,
        "push": False,
    }
    update = updates(service, of_group)
    assert (update["kind"], update["name"], update["state"]) == ("merge_group", name, "planned")
    [execution] = service.api.get("/executions")["items"]
    message = execution["message"]
    assert (message["trigger"], message["commit"]["id"]) == ("queue", head)
    assert message["commit"]["before"] == project.first
    assert message["ref"] == {"name": name, "kind": "branch"}
    assert (message["merge_group"], message["pull_request"]) == ({"base": "main"}, None)
    body["action"] = "destroyed"
    _, gone = service.deliver(connection, json.dumps(body).encode(), event="merge_group")
    assert gone["verdict"] == "ignored"
    shown = [one["ref"] for one in service.api.get(f"/connections/{connection['id']}/refs")["items"]]
    assert f"refs/heads/{name}" in shown
    assert not [ref for ref in shown if ref.startswith("refs/merge-queue/")]


def test_the_latest_commit_takes_back_what_is_not_published(service: Service, project: Project) -> None:
    """Only of its own branch; a superseded request names its successor."""
    trigger = {"name": "train", "branches": ["*"], "policy": "latest", "run": {"step": "train"}}
    connection = service.connect(project.url, triggers=[trigger])
    commits = [project.push(f"Number {number}", {"train.py": str(number)}) for number in range(3)]
    project.tree.push("HEAD:refs/heads/other")
    for before, after in zip([project.first, *commits], commits, strict=False):
        _, answer = service.deliver(connection, project.payload(before, after))
        service.settled(answer["delivery"])
    service.deliver(connection, project.payload(None, commits[-1], "refs/heads/other"))
    wait_for(lambda: len(service.api.get("/executions")["items"]) == 4, "all are planned")
    shown = {
        (one["message"]["ref"]["name"], one["message"]["commit"]["id"]): one
        for one in service.api.get("/executions")["items"]
    }
    states = {commit: shown["main", commit]["state"] for commit in commits}
    assert states == {commits[0]: "superseded", commits[1]: "superseded", commits[2]: "pending"}
    last = shown["main", commits[2]]["id"]
    assert shown["main", commits[1]]["superseded_by"] == last
    expected = f"refs/heads/main has moved on to {commits[2]}, which has the request {last}"
    assert shown["main", commits[1]]["reason"] == expected
    assert shown["other", commits[2]]["state"] == "pending"


def test_each_trigger_says_why(service: Service, project: Project) -> None:
    """The delivery shows the reason of each, whether it ran or not."""
    named = {
        "runs": {"branches": ["main"]},
        "other": {"branches": ["dev"]},
        "paths": {"paths": ["data/**"]},
        "author": {"authors": ["*bot*"]},
    }
    triggers = [{"name": name, "run": {"step": "train"}, **fields} for name, fields in named.items()]
    connection = service.connect(project.url, triggers=triggers)
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    said = {one["trigger"]: (one["matched"], one["reason"]) for one in updates(service, answer)["verdicts"]}
    assert said == {
        "runs": (True, "branch main matches"),
        "other": (False, "branch main does not match dev"),
        "paths": (False, "no changed path matches data/**"),
        "author": (False, "the commit's author does not match *bot*"),
    }


def test_a_skipped_commit_is_visible(service: Service, project: Project) -> None:
    """It is fetched, and runs nothing."""
    connection = service.connect(project.url, "train@main")
    pushed = project.push("Typo [skip ci]", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    assert "the commit's message contains [skip ci]" in updates(service, answer)["reason"]
    assert service.api.get("/executions")["items"] == []


def test_a_task_is_asked_for_with_its_step(service: Service, project: Project) -> None:
    """Parameters that vary stay open; those that the trigger fixes are set."""
    trigger = {"name": "search", "run": {"task": "search"}, "parameters": {"rate": 0.5}}
    connection = service.connect(project.url, triggers=[trigger])
    pushed = project.push("Search", {"valohai.yaml": MANIFEST})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    assert updates(service, answer)["reason"] == "1 execution request"
    [execution] = service.api.get("/executions")["items"]
    asked = execution["message"]["execution"]
    assert (asked["kind"], asked["name"], asked["type"]) == ("task", "search", "random_search")
    assert asked["parameters"] == {"epochs": {"style": "multiple", "rules": {"items": [1, 2, 3]}}}
    assert asked["step"]["parameters"] == {"rate": 0.5}
    assert asked["step"]["command"] == ["python train.py {parameter:epochs} --rate=0.5"]
    assert asked["definition"]["execution-count"] == 4


def test_a_delivery_is_planned_again_once_its_trigger_is_mended(service: Service, project: Project) -> None:
    """Existing requests are not repeated; new ones have the commit of that push."""
    connection = service.connect(project.url, "train@main", "missing@main")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    assert updates(service, answer)["state"] == "failed"
    [first] = service.api.get("/executions")["items"]
    triggers = [
        {"name": "train@main", "branches": ["main"], "run": {"step": "train"}},
        {"name": "missing@main", "branches": ["main"], "run": {"step": "train"}},
    ]
    service.api.send("PATCH", f"/connections/{connection['id']}", {"triggers": triggers})
    service.api.send("POST", f"/deliveries/{answer['delivery']}/replay")
    assert updates(service, answer)["state"] == "planned"
    found = service.api.get("/executions")["items"]
    assert [one["trigger"] for one in found] == ["missing@main", "train@main"]
    assert found[1] == first
    assert {one["message"]["commit"]["id"] for one in found} == {pushed}
    refs = {
        one["ref"]: one["id"] for one in service.api.get(f"/connections/{connection['id']}/refs")["items"]
    }
    assert refs["refs/heads/main"] == pushed
