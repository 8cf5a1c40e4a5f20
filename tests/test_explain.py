"""`pushgate explain`: the whole way of a push."""

import json

from tests.service import Project, Service, run_pushgate


def test_the_whole_way_is_told(service: Service, project: Project) -> None:
    """By the delivery's id, by the commit's, by its beginning, and by its page."""
    connection = service.connect(project.url, "train@main", "other@dev")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, answer = service.deliver(connection, project.payload(project.first, pushed))
    service.settled(answer["delivery"])
    page = f"https://github.example/acme/digits/commit/{pushed}"
    told = {
        run_pushgate("explain", what, service=service).stdout
        for what in (answer["delivery"], pushed, pushed[:9], page)
    }
    [text] = told
    [execution] = service.api.get("/executions")["items"]
    for line in (
        f"delivery {answer['delivery']}",
        "from github: push",
        "verified with the secret that was made",
        f"branch main {project.first[:10]} → {pushed[:10]}",
        "planned: 1 execution request",
        "✓ trigger train@main: branch main fits",
        f"execution {execution['id']}: pending",
        "✗ trigger other@dev: branch main does not fit dev",
    ):
        assert line in text
    found = run_pushgate("explain", pushed, "--json", service=service)
    assert json.loads(found.stdout)["items"][0]["executions"][0]["id"] == execution["id"]


def test_a_commit_that_nobody_told_of_is_said_so(service: Service) -> None:
    """With where to look."""
    done = run_pushgate("explain", "deadbeef", service=service)
    assert (done.returncode, "no delivery has told of deadbeef" in done.stderr) == (1, True)
    nothing = run_pushgate("explain", "what?", service=service)
    assert (nothing.returncode, "names no commit" in nothing.stderr) == (1, True)
