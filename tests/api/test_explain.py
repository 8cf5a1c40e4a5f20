"""`pushgate explain`: all stages of a push."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.api_client import ApiError
from testing.broker import Broker
from testing.service import Project, Service, run_pushgate, wait_for


def test_the_whole_way_is_shown(service: Service, project: Project) -> None:
    """By the delivery's id, by the request's, by the commit's, by its beginning, and by its page."""
    connection = service.connect(project.url, "train@main", "other@dev")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    service.settled(answer["delivery"])
    [execution] = service.api.get("/executions")["items"]
    page = f"https://github.example/acme/digits/commit/{pushed}"
    printed = {
        run_pushgate("explain", what, service=service).stdout
        for what in (answer["delivery"], execution["id"], pushed, pushed[:9], page)
    }
    [text] = printed
    package = execution["message"]["package"]
    for line in (
        f"delivery {answer['delivery']}",
        "from github: push",
        "verified with the secret created",
        f"branch main {project.first[:10]} → {pushed[:10]}",
        "fetched, and planned 20",
        "Z: 1 execution request",
        "✓ trigger train@main: branch main matches",
        f"execution {execution['id']}, planned 20",
        f"packaged: tar.gz of {package['size']} bytes, {package['id']}",
        "pending: no broker has confirmed it yet",
        "✗ trigger other@dev: branch main does not match dev",
    ):
        assert line in text
    found = run_pushgate("explain", pushed, "--json", service=service)
    assert json.loads(found.stdout)["items"][0]["executions"][0]["id"] == execution["id"]


def test_an_unknown_commit_is_reported_as_unknown(service: Service) -> None:
    """With the next steps."""
    done = run_pushgate("explain", "deadbeef", service=service)
    assert (done.returncode, "no delivery contains commit deadbeef" in done.stderr) == (1, True)
    elsewhere = run_pushgate("explain", "https://git.example/acme/other", service=service)
    assert (
        elsewhere.returncode,
        "repository matches 'https://git.example/acme/other'" in elsewhere.stderr,
    ) == (1, True)
    nothing = run_pushgate("explain", "what?", service=service)
    assert (
        nothing.returncode,
        "No delivery, execution, commit or repository matches 'what?'" in nothing.stderr,
    ) == (1, True)


def test_a_number_in_a_url_is_no_commit_unless_a_delivery_contains_it(
    service: Service, project: Project
) -> None:
    """A run's page, or a date in a branch's name: then it is about the repository."""
    connection = service.connect(project.url, "train@main")
    _, answer = service.deliver(connection, project.payload(None, project.first))
    service.settled(answer["delivery"])
    for page in ("/actions/runs/1234567890", "/tree/release-20261129"):
        assert answer["delivery"] in explained(service, project.url.removesuffix(".git") + page)
    assert answer["delivery"] in explained(service, connection["id"])
    assert answer["delivery"] in explained(service, f"{service.url}/connections/{connection['id']}")
    behind = f"/commit/{project.first}?run=12345678#diff-{'ab' * 32}"
    assert answer["delivery"] in explained(service, project.url.removesuffix(".git") + behind)
    other = run_pushgate("explain", f"{project.url.removesuffix('.git')}/commit/{'d' * 40}", service=service)
    assert (other.returncode, f"no delivery contains commit {'d' * 40}" in other.stderr) == (1, True)
    nothing = run_pushgate("explain", " ", service=service)
    assert (nothing.returncode, "give the id of a delivery or execution, a commit" in nothing.stderr) == (
        1,
        True,
    )


def explained(service: Service, what: str) -> str:
    """Return the explanation of something."""
    done = run_pushgate("explain", what, service=service)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_repository_is_explained_by_its_newest_deliveries(service: Service, project: Project) -> None:
    """By its URL, in any form, and by any page below it that names no commit."""
    connection = service.connect(project.url, "train@main")
    nothing = run_pushgate("explain", project.url, service=service)
    assert f"no deliveries for connection {connection['id']}" in nothing.stderr
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    answers = [service.deliver(connection, project.payload(project.first, pushed))[1] for _ in range(2)]
    service.settled(answers[0]["delivery"])
    page = project.url.removesuffix(".git").replace("127.0.0.1", "ada@127.0.0.1") + "/tree/main"
    [text] = {explained(service, one) for one in (project.url, project.url.removesuffix(".git"), page)}
    assert text.startswith(f"delivery {answers[0]['delivery']}\n")
    assert f"\ndelivery {answers[1]['delivery']}\n" in text
    assert f"duplicate: delivery {answers[0]['delivery']} reported the same" in text


def test_a_tag_is_found_by_its_commit(service: Service, project: Project) -> None:
    """Users know the commit; the push named the tag's own object."""
    trigger = {"name": "release", "tags": ["v*"], "run": {"step": "train"}}
    connection = service.connect(project.url, triggers=[trigger])
    tag = project.push_tag("v1.0")
    _, answer = service.deliver(connection, project.payload(None, tag, ref="refs/tags/v1.0"))
    service.settled(answer["delivery"])
    text = explained(service, project.first)
    assert text == explained(service, tag)
    assert f"tag v1.0 ∅ → {tag[:10]}, a tag of commit {project.first[:10]}" in text
    assert service.api.get("/executions")["items"][0]["id"] in text


def test_each_request_stands_at_its_own_ref(service: Service, project: Project) -> None:
    """Two new branches at one commit have one request each, however alike they are."""
    connection = service.connect(project.url, triggers=[{"name": "train", "run": {"step": "train"}}])
    assert service.fetched(connection) == []
    project.tree.push("HEAD:refs/heads/one", "HEAD:refs/heads/two")
    assert len(service.fetched(connection)) == 2
    [moves] = [one for one in service.api.get("/deliveries")["items"] if len(one["updates"]) == 2]
    text = explained(service, moves["id"])
    of_ref = {one["message"]["ref"]["name"]: one["id"] for one in service.api.get("/executions")["items"]}
    one, two = text[text.index("branch one") : text.index("branch two")], text[text.index("branch two") :]
    assert [of_ref["one"] in one, of_ref["two"] in one] == [True, False]
    assert [of_ref["one"] in two, of_ref["two"] in two] == [False, True]


def test_why_there_is_no_package_is_shown_beside_the_verdicts(tmp_path: Path, project: Project) -> None:
    """The trigger matched; the failure came after it."""
    with Service(tmp_path / "data", PACKAGE_MAX_BYTES="10") as service:
        connection = service.connect(project.url, "train@main")
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        _, answer = service.deliver(connection, project.payload(project.first, pushed))
        [update] = service.settled(answer["delivery"])["updates"]
        text = explained(service, answer["delivery"])
    assert ".vhignore" in update["reason"]
    assert "fetched, and failed" in text
    assert text.endswith(
        f"✓ trigger train@main: branch main matches\n        └── no request: {update['reason']}\n"
    )


def test_a_confirmed_request_is_shown_as_such(tmp_path: Path, project: Project, broker: Broker) -> None:
    """With its lane, and the time."""
    settings = {"AMQP_URL": broker.url, "AMQP_QUEUE": "explained", "AMQP_EXCHANGE": "explained"}
    with Service(tmp_path / "data", AMQP_LANES="fast", **settings) as service:
        trigger = {"name": "train", "lane": "fast", "run": {"step": "train"}}
        connection = service.connect(project.url, triggers=[trigger])
        pushed = project.push("Second", {"train.py": "print(2)\n"})
        _, answer = service.deliver(connection, project.payload(project.first, pushed))

        def published() -> str | None:
            found = service.api.get("/executions")["items"]
            return found[0]["published_at"] if found else None

        when = wait_for(published, "the broker has confirmed it")
        text = explained(service, answer["delivery"])
    assert f"published in lane fast, confirmed by the broker {when}" in text


def test_what_kept_a_trigger_from_its_request_is_shown_at_it(service: Service, project: Project) -> None:
    """It matched, and its neighbour has a request; each sentence is on one line, for searching."""
    reason = f"valohai.yaml has no step {'missing' * 20}; its steps: train"
    connection = service.connect(project.url, "train@main", f"{'missing' * 20}@main")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    [update] = service.settled(answer["delivery"])["updates"]
    assert [one["failure"] for one in update["verdicts"]] == [None, reason]
    lines = explained(service, answer["delivery"]).splitlines()
    assert lines[-1] == f"        └── no request: {reason}"
    assert lines[-2].startswith(f"    └── ✓ trigger {'missing' * 20}@main: branch main matches")


def test_a_request_of_earlier_rules_is_still_shown(service: Service, project: Project) -> None:
    """The delivery was replayed since, and the trigger was removed."""
    connection = service.connect(project.url, "train@main")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    service.settled(answer["delivery"])
    service.api.send("PATCH", f"/connections/{connection['id']}", {"triggers": []})
    service.api.send("POST", f"/deliveries/{answer['delivery']}/replay")
    service.settled(answer["delivery"])
    text = explained(service, answer["delivery"])
    assert "fetched; the connection has no triggers" in text
    assert "trigger train@main, under earlier rules" in text
    assert service.api.get("/executions")["items"][0]["id"] in text


def test_a_commit_in_the_middle_of_a_push_is_found(service: Service, project: Project) -> None:
    """By the commits that its webhook lists; a connection is found by its name."""
    connection = service.connect(project.url, "train@main", name="digits")
    middle = project.push("Second", {"train.py": "print(2)\n"})
    pushed = project.push("Third", {"train.py": "print(3)\n"})
    payload = json.loads(project.payload(project.first, pushed))
    payload["commits"] = [{**payload["commits"][0], "id": one} for one in (middle, pushed)]
    _, answer = service.deliver(connection, json.dumps(payload).encode())
    service.settled(answer["delivery"])
    for what in (middle, middle[:9], f"{project.url.removesuffix('.git')}/commit/{middle}", "digits"):
        assert answer["delivery"] in explained(service, what)


def test_what_was_refused_is_listed_and_explained(service: Service, project: Project) -> None:
    """A wrong secret and a wrong URL: the first thing to look for when a new webhook does not work."""
    connection = service.connect(project.url)
    name = connection["id"]
    body = project.payload(None, project.first)
    wrong = {**connection, "secret": "not the secret of this webhook"}
    assert service.deliver(wrong, body, x_github_delivery="first-try")[0] == 401
    assert service.deliver(wrong, body, x_github_delivery="second-try")[0] == 401
    assert service.deliver({**connection, "path": f"/hooks/{'0' * 24}"}, body)[0] == 404
    assert service.deliver({**connection, "path": "/hooks/a%20secret"}, body)[0] == 404

    def refused(**query: Any) -> Any:
        return service.api.get("/deliveries", verdict="refused", **query)["items"]

    wait_for(lambda: sum(item["refusal"]["count"] for item in refused()) == 4, "all refusals are recorded")
    [item] = refused(connection=name)
    assert (item["connection"], item["event"], item["provider_delivery_id"]) == (name, "push", "second-try")
    assert (item["refusal"]["status"], item["refusal"]["client"]) == (401, "127.0.0.1")
    assert (item["refusal"]["count"], item["updates"]) == (2, [])
    unknown = [each for each in refused() if each["name"] == "unknown connection"]
    assert {each["connection"] for each in unknown} == {"0" * 24, ""}
    assert {each["provider"] for each in unknown} == {None}
    assert refused(commit=project.first) == service.api.get("/deliveries")["items"] == []
    assert service.api.get(f"/deliveries/{item['id']}") == item
    with pytest.raises(ApiError, match="let the provider send it again"):
        service.api.send("POST", f"/deliveries/{item['id']}/replay")

    table = run_pushgate("deliveries", "--verdict", "refused", service=service).stdout
    for text in ("push second-try", f"401 2 times: {item['reason']}", "404 once: no connection has this"):
        assert text in table
    assert f"unknown connection {'0' * 24}  127.0.0.1" in table
    assert "401: Enter this connection's secret" in table
    assert "--outcome refused" in run_pushgate("deliveries", service=service).stdout
    for what in (name, project.url, item["id"], "second-try"):
        text = explained(service, what)
        assert f"refused with status 401: {item['reason']}" in text
        assert f"from github 127.0.0.1: push, for {item['name']}" in text
    assert "401 to 127.0.0.1, 2 times" in run_pushgate("deliveries", item["id"], service=service).stdout
    assert "a%20secret" not in json.dumps(refused())
    assert wrong["secret"] not in json.dumps(refused())
    service.settled(service.deliver(connection, body)[1]["delivery"])
    assert "refused" not in explained(service, name)
