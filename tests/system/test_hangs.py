"""Git hosts that hang, next to hosts that answer."""

import ast
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from testing.git_host import GitHost
from testing.github import push_payload
from testing.http_remotes import gits_about, hanging
from testing.packing import add_submodule
from testing.service import Project, Service, wait_for

MAIN = "refs/heads/main"
GATEWAY = Path(__file__).parents[2] / "gateway"


def test_nothing_uses_the_event_loops_own_threads() -> None:
    """All tasks share them: a call that hangs there blocks everything. See `gateway.threads`."""
    found = []
    for path in sorted(GATEWAY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            is_default = (
                node.func.attr == "run_in_executor"
                and isinstance(node.args[0], ast.Constant)
                and node.args[0].value is None
            )
            if is_default or ast.unparse(node.func) in {"asyncio.to_thread", "loop.getaddrinfo"}:
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_hosts_that_hang_hold_up_nobody_else(tmp_path: Path, githost: GitHost) -> None:
    """Webhooks, probes, metrics and pushes to other hosts go on, however many pushes wait."""
    project = Project(githost, tmp_path)
    with hanging() as port, Service(tmp_path / "data", FETCH_TIMEOUT="300", CONCURRENCY="2") as service:
        for number in range(8):
            name, url = f"acme/{number}", f"http://localhost:{port}/acme/{number}.git"
            payload = push_payload(url=url, full_name=name, ref=MAIN, before=None, after="d" * 40)
            assert service.deliver(service.connect(url), payload)[0] == 202
        wait_for(lambda: gits_about(port, "localhost"), "git has begun to wait")
        healthy = service.connect(project.url, "train@main")
        padded = project.payload(None, project.first)[:-1] + b', "padding": "%b"}' % (b"x" * 300_000)
        status, answer = service.deliver(healthy, padded)
        assert status == 202
        [update] = service.settled(answer["delivery"])["updates"]
        assert update["state"] == "planned"
        for path in ("/metrics", "/readyz"):
            with urlopen(service.url + path, timeout=30) as response:  # noqa: S310 - our own
                assert response.status == 200
        assert service.stop() == 0


def test_a_submodule_that_is_away_holds_up_its_own_push_only(service: Service, project: Project) -> None:
    """The push waits, with the reason; a later push to another branch runs at once."""
    connection = service.connect(project.url, "train@*")
    project.tree.git("checkout", "--quiet", "-b", "topic")
    add_submodule(project.tree, path="lib", url="http://127.0.0.1:9/acme/lib.git", commit="d" * 40)
    topic = project.tree.commit("With a submodule", {})
    project.tree.push("topic")
    _, waiting = service.deliver(connection, project.payload(None, topic, "refs/heads/topic"))

    def update() -> Any:
        [found] = service.api.get(f"/deliveries/{waiting['delivery']}")["updates"]
        return found

    wait_for(lambda: "submodule lib" in (update()["reason"] or ""), "the push says what it waits for")
    project.tree.git("checkout", "--quiet", "main")
    after = project.push("Second", {"a": "1"})
    _, answer = service.deliver(connection, project.payload(project.first, after))
    [main] = service.settled(answer["delivery"])["updates"]
    assert (main["state"], update()["state"]) == ("planned", "pending")
