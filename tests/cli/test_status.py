"""The commands `status` and `completion`."""

import json
import os
import signal
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from testing.git_host import GitHost
from testing.github import push_payload
from testing.service import PUSHGATE, WAIT_SECONDS, Service, wait_for
from testing.service import run_pushgate as run


def test_status_shows_what_waits(tmp_path: Path) -> None:
    """On one screen; the exit status is 0 while nothing fails."""
    url = "https://github.example/acme/digits.git"
    push = push_payload(
        url=url, full_name="acme/digits", ref="refs/heads/main", before="a" * 40, after="b" * 40
    )
    with Service(tmp_path / "data", ROLE="web") as web:
        connection = web.connect(url, "train@main")
        web.deliver(connection, push)
        done = run("status", service=web)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{web.url}, version {version('pushgate')}\n" in done.stdout
        assert "1 not planned yet, the oldest for " in done.stdout
        assert (
            "unknown: the process at this address has no broker (PUSHGATE_AMQP_URL), or the role web"
            in done.stdout
        )
        assert len(done.stdout.splitlines()) < 24
        found = json.loads(run("status", "--json", service=web).stdout)
        assert (found["ready"], found["problems"], found["broker"]["requests"]) == (True, [], None)
        assert found["backlog"]["pushes"]["waiting"] == 1
        counted = run("statistics", "--hours=1", service=web)
        assert (counted.returncode, "deliveries  1 waiting" in counted.stdout) == (0, True)
        assert "buckets" in json.loads(run("statistics", "--json", service=web).stdout)


def test_status_fails_if_something_fails(tmp_path: Path, githost: GitHost) -> None:
    """It names the broker and the connections, and what to do."""
    with Service(tmp_path / "data", AMQP_URL="amqp://127.0.0.1:9/") as service:
        connection = service.connect(githost.url("acme/missing.git"), name="missing")
        path = f"/connections/{connection['id']}"
        wait_for(
            lambda: service.api.get(path)["health"]["state"] == "failing", "the repository was looked at"
        )
        not_connected = 'pushgate_broker_connected{what="event"} 0'
        wait_for(lambda: not_connected in service.api.root("/metrics")[1], "the broker was tried")
        done = run("status", service=service)
        assert done.returncode == 1
        assert "not connected: requests and events wait" in done.stdout
        assert "1 failing" in done.stdout
        assert "missing failing: " in done.stdout
        found = json.loads(run("status", "--json", service=service).stdout)
        assert "The broker is not connected: requests wait." in found["problems"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    """For each shell."""
    done = run("completion", shell)
    assert done.returncode == 0
    assert f"complete_{shell}" in done.stdout


def test_a_shell_completes_commands_and_options() -> None:
    """With the script, in a real shell."""
    script = run("completion", "bash").stdout
    ask = f'_pushgate_completion {PUSHGATE}; echo "${{COMPREPLY[*]}}"'
    words = f"COMP_WORDS=(pushgate edit --no-st); COMP_CWORD=2; {ask}"
    done = subprocess.run(["bash", "-c", f"{script}\n{words}"], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["--no-statuses", "--no-status-webhook"], done.stderr


def test_the_exit_status_tells_wrong_usage_from_an_interruption() -> None:
    """2 for usage, 130 for Ctrl-C; the other tests have 0 and 1."""
    done = run("edit")
    assert (done.returncode, "Missing argument 'CONNECTION'" in done.stderr) == (2, True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        variables = {**os.environ, "PUSHGATE_URL": url, "PUSHGATE_ADMIN_TOKEN": "x"}
        # Programs that a shell starts in the background ignore SIGINT, and so do their children.
        command = ["env", "--default-signal=INT", str(PUSHGATE), "connections"]
        with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE) as process:
            request, _ = silent.accept()
            with request:
                request.recv(1)
                process.send_signal(signal.SIGINT)
                status = process.wait(WAIT_SECONDS)
            assert process.stderr is not None
            assert status == 130, process.stderr.read()
