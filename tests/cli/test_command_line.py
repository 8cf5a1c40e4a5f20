"""The command `pushgate`, as people and scripts run it."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.cli.api_client import ApiError
from gateway.cli.output import escape, print_json
from providers import PROVIDERS
from testing.git_host import GitHost
from testing.service import ADMIN_TOKEN, PUSHGATE, WAIT_SECONDS, Project, Service, wait_for
from testing.service import run_pushgate as run


def answer(*arguments: str, service: Service, variables: Mapping[str, str] | None = None) -> Any:
    """Run a command with --json, and return its output."""
    done = run(*arguments, "--json", service=service, variables=variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_version_prints_the_installed_version() -> None:
    """Without a gateway."""
    done = subprocess.run([PUSHGATE, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"pushgate {version('pushgate')}\n")


def test_the_whole_way_by_commands(service: Service, project: Project, tmp_path: Path) -> None:
    """Connect, push, send, look: each command prints the API's own shapes with --json."""
    made = answer(
        "connect",
        project.url,
        "--provider=github",
        "--project=digits",
        "--trigger=train@main",
        service=service,
    )
    assert made["triggers"][0]["branches"] == ["main"]
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    payload = tmp_path / "payload.json"
    payload.write_bytes(project.payload(project.first, pushed))
    send = ("send", made["hook_url"], str(payload), "--provider=github", "--delivery=guid")
    sent = answer(*send, service=service, variables={"WEBHOOK_SECRET": made["secret"]})
    assert (sent["status"], sent["verdict"]) == (202, "accepted")
    service.settled(sent["delivery"])

    assert [one["id"] for one in answer("connections", service=service)["items"]] == [made["id"]]
    assert answer("deliveries", sent["delivery"], service=service)["provider_delivery_id"] == "guid"
    [execution] = answer("executions", "--connection", made["id"], service=service)["items"]
    assert execution["message"]["commit"]["id"] == pushed
    assert answer("executions", execution["id"], service=service) == execution
    mine = ("executions", "--branch=main", "--author=ada", "--since=1h", "--until=2100-01-01")
    assert answer(*mine, service=service)["items"] == [execution]
    assert answer(*mine, "--search=nothing", service=service)["items"] == []

    for command, expected in (
        (("connections",), "train@main"),
        (("deliveries",), "1 execution request"),
        (("executions",), f"train at main {pushed[:10]}"),
    ):
        done = run(*command, service=service)
        assert expected in done.stdout, done.stderr
    assert "duplicate" in run(*send, service=service, variables={"WEBHOOK_SECRET": made["secret"]}).stdout


def test_executions_are_followed_as_they_come(service: Service, project: Project) -> None:
    """`--follow --json` prints a line for each new request, at once."""
    connection = service.connect(project.url, "train@main")
    process = subprocess.Popen(
        [PUSHGATE, "executions", "--follow", "--json"],
        env={**os.environ, "PUSHGATE_URL": service.url, "PUSHGATE_ADMIN_TOKEN": ADMIN_TOKEN},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    stdout = process.stdout
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(stdout.readline()))
    with process:
        try:
            reader.start()
            commit = project.first
            # It follows from its own start, which is not signalled: push until one request is printed.
            for number in range(30):
                before, commit = commit, project.push("Next", {"train.py": f"print({number})\n"})
                service.settled(service.deliver(connection, project.payload(before, commit))[1]["delivery"])
                reader.join(0.5)
                if lines:
                    break
        finally:
            process.terminate()
            reader.join()
    assert json.loads(lines[0])["message"]["execution"]["name"] == "train"


@pytest.mark.parametrize("command", [("completion", "bash"), ("deliveries",)])
def test_a_reader_may_close_the_pipe(service: Service, command: tuple[str, ...]) -> None:
    """The status is that of the signal, as of other programs, and nothing is printed about it."""
    environment = {**os.environ, "PUSHGATE_URL": service.url, "PUSHGATE_ADMIN_TOKEN": ADMIN_TOKEN}
    with subprocess.Popen(
        [PUSHGATE, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        # Before it prints anything: it takes half a second to start.
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(WAIT_SECONDS) == 141


@pytest.mark.parametrize("option", ["--url", "--data", "--json"])
def test_options_may_precede_a_command(service: Service, option: str) -> None:
    """As if they followed it; a command that has no such option refuses it."""
    values: dict[str, list[str | Path]] = {"--url": [service.url], "--data": [service.data], "--json": []}
    value = values[option]
    before = run(option, *value, "source", "list", service=service)
    assert before.returncode == 0, before.stderr
    assert before.stdout == run("source", "list", option, *value, service=service).stdout
    if option != "--url":
        refused = run(option, *value, "completion", "bash")
        assert refused.returncode == 2
        assert f"pushgate completion has no option {option}" in refused.stderr


def test_the_version_is_printed_without_the_commands() -> None:
    """They take half a second to import."""
    code = "import sys; from gateway.cli.main import main; main(); assert 'typer' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], check=True, capture_output=True, text=True
    )
    assert done.stdout == f"pushgate {version('pushgate')}\n"


def test_a_follower_goes_on_when_the_gateway_starts_again(
    service: Service, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It continues where it stopped, with a message; a gateway that stays down is an error."""
    connection = service.connect(project.url, "train@*")
    seen: list[str] = []
    reports: list[str] = []
    ended: list[Exception] = []
    clock = SimpleNamespace(monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr("gateway.cli.api_client.time", clock)

    def follow() -> None:
        try:
            followed = service.api.executions(report=reports.append, patience=WAIT_SECONDS)
            seen.extend(one["message"]["ref"]["name"] for _, one in followed)
        except ApiError as error:
            ended.append(error)

    def push(name: str) -> bool:
        answer = service.deliver(connection, project.payload(None, project.first, f"refs/heads/{name}"))[1]
        service.settled(answer["delivery"])
        return name in seen

    follower = threading.Thread(target=follow)
    follower.start()
    numbers = itertools.count()
    # It follows from its own start, which is not signalled.
    wait_for(lambda: push(f"before-{next(numbers)}"), "the follower follows")
    port = int(service.url.rpartition(":")[2])
    service.kill()
    wait_for(lambda: reports, "the end of the stream is reported")
    service.start(port)
    push("after")
    wait_for(lambda: "after" in seen, "the follower has gone on")
    assert len(seen) == len(set(seen))
    # However many attempts there were.
    assert [one.partition(service.url)[2].rpartition(" ")[2] for one in reports] == ["…", "again."]
    service.kill()
    wait_for(lambda: len(reports) > 2, "the second end of the stream is reported")
    clock.monotonic = lambda: time.monotonic() + WAIT_SECONDS
    follower.join(WAIT_SECONDS)
    assert "cannot reach the gateway" in str(ended[0])


def test_a_delivery_is_shown_whole(service: Service, project: Project) -> None:
    """With its content, full ids and results, not as one row of a table."""
    connection = service.connect(project.url, "train@main", "other@dev")
    pushed = project.push("Second", {"train.py": "print(2)\n"})
    _, sent = service.deliver(connection, project.payload(project.first, pushed), x_github_delivery="guid")
    service.settled(sent["delivery"])
    shown = " ".join(run("deliveries", sent["delivery"], service=service).stdout.split())
    for expected in (
        connection["id"],
        "id at the provider guid",
        "pushed by ada",
        f"{project.first} → {pushed}",
        "trigger other@dev: branch main does not match dev",
        service.api.get("/executions")["items"][0]["id"],
    ):
        assert expected in shown


CONNECT_TO = ("connect", "--provider=github", "--project=digits")


def test_connect_says_whether_the_repository_can_be_read(
    service: Service, project: Project, githost: GitHost
) -> None:
    """It makes the connection in any case, since a remote may be unreachable for a while."""
    done = run(*CONNECT_TO, project.url, service=service)
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓ The repository can be read: it has 1 branch or tag. Its default branch is main." in done.stdout
    missing = githost.url("acme/missing.git")
    done = run(*CONNECT_TO, missing, service=service)
    assert done.returncode == 0
    assert "Warning: the repository cannot be read: " in done.stdout
    assert "Connected acme/missing" in done.stdout
    assert "What to do: check the URL; if the repository is private, set the connection's" in done.stdout
    done = run("check", "acme/missing", service=service)
    assert (done.returncode, "does not exist" in done.stdout) == (1, True)
    githost.create("acme/missing.git")
    remote = answer("check", "acme/missing", service=service)["remote"]
    assert (remote["readable"], remote["reason"], remote["repair"]) == (True, None, None)


def test_connect_warns_of_a_webhook_url_that_the_provider_cannot_reach(tmp_path: Path) -> None:
    """The default names this machine, so it works only from this machine."""
    with Service(tmp_path / "data", ROLE="web") as service:
        done = run(*CONNECT_TO, "git@github.com:acme/digits.git", "--wait=0", service=service)
        assert "Warning: github.com cannot reach 127.0.0.1" in done.stderr
        assert "PUSHGATE_PUBLIC_URL" in done.stderr
        assert "has not been read yet: no worker has begun to read it." in done.stdout
        assert "What to do: check that a process with the role all or worker is running" in done.stdout


def test_a_secret_of_the_environment_is_not_taken_for_a_new_connection(
    service: Service, tmp_path: Path
) -> None:
    """It was exported for `send`, for another connection; a file is used, since it was named."""
    secret = "the secret of another connection"
    file = tmp_path / "secret"
    file.write_text("the secret of this connection\n")
    url = "https://github.example/acme/digits.git"
    exported = {"WEBHOOK_SECRET": secret}
    assert answer(*CONNECT_TO, url, service=service, variables=exported)["secret"] != secret
    named = answer(
        *CONNECT_TO, f"{url}2", f"--secret-file={file}", "--name=two", service=service, variables=exported
    )
    assert named["secret"] == "the secret of this connection"


def test_fetch_reports_the_look_that_it_requested(service: Service, githost: GitHost) -> None:
    """Not of an earlier, repaired failure; the connection's name works as well."""
    connection = service.connect(githost.url("acme/late.git"), name="late")
    path = f"/connections/{connection['id']}"
    wait_for(lambda: service.api.get(path)["reconciliation"]["reason"], "the first look has failed")
    assert run("fetch", "late", service=service).returncode == 1
    done = run("fetch", "late", "--json", service=service)
    assert (done.returncode, json.loads(done.stdout)["delivery"]) == (1, None)
    githost.create("acme/late.git")
    done = run("fetch", "late", service=service)
    assert (done.returncode, done.stderr) == (0, "")
    assert "No ref has moved" in done.stdout
    done = run("fetch", "nope", service=service)
    assert (done.returncode, "no connection has the id nope" in done.stderr) == (1, True)


def test_fetch_ends_where_no_worker_runs(tmp_path: Path) -> None:
    """After a while, with a sentence that says so."""
    with Service(tmp_path / "data", ROLE="web") as service:
        connection = service.connect("https://github.example/acme/digits.git")
        done = run("fetch", connection["id"], "--wait=0.2", service=service)
    assert done.returncode == 1
    assert "no worker has begun within 0.2 s" in done.stderr


def test_a_wrong_secret_is_reported_and_fails(service: Service, project: Project, tmp_path: Path) -> None:
    """The exit status is 1, so that scripts notice."""
    connection = service.connect(project.url)
    payload = tmp_path / "payload.json"
    payload.write_bytes(b"{}")
    done = run(
        "send",
        service.url + connection["path"],
        payload,
        "--provider=github",
        "--secret=wrong",
        service=service,
    )
    assert done.returncode == 1
    assert "401 not verified" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--provider=cvs",), "provider: unknown provider 'cvs'"),
        (("--provider=github", "--trigger=@main"), "trigger"),
        (("--provider=github", "--secret="), "secret"),
        (
            ("--provider=github", "--yaml-path=/valohai.yaml"),
            "yaml_path: it must be a path inside the repository",
        ),
        (("--provider=github", "--yaml-path=ml/"), "yaml_path: it must be a path inside the repository"),
        (
            ("--provider=github", "--yaml-path=ml/../v.yaml"),
            "yaml_path: it must be a path inside the repository",
        ),
    ],
)
def test_bad_input_is_one_sentence(service: Service, arguments: tuple[str, ...], expected: str) -> None:
    """On standard error, without a traceback."""
    done = run("connect", "https://github.example/a/b.git", "--project=p", *arguments, service=service)
    assert done.returncode == 1
    assert done.stderr.startswith("pushgate: ")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc",
        "ext::sh -c id",
        "/srv/git/a.git",
        "--upload-pack=x",
        "https://-oProxyCommand=x/a.git",
        "ssh://-oProxyCommand=x/a.git",
        "https://github.example",
        "ftp://github.example/a.git",
        "https://github.example/a b.git",
    ],
)
def test_urls_that_are_not_fetched_from_are_refused(service: Service, url: str) -> None:
    """No files, no commands, no options, no credentials."""
    done = run("connect", "--project=p", "--provider=github", "--", url, service=service)
    assert done.returncode == 1
    assert "url: " in done.stderr
    assert "password@" not in done.stderr


def test_a_gateway_that_does_not_run_is_reported(tmp_path: Path) -> None:
    """With its address, and what to do."""
    done = run("connections", variables={"PUSHGATE_URL": "http://127.0.0.1:9", "PUSHGATE_ADMIN_TOKEN": "x"})
    assert done.returncode == 1
    assert "Is `pushgate serve` running?" in done.stderr
    done = run("connections", "--data", tmp_path)
    assert "set PUSHGATE_ADMIN_TOKEN" in done.stderr


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        pytest.param(
            b"200 OK\r\ncontent-length: 100\r\n\r\n{", "cannot reach", id="killed in the middle of it"
        ),
        pytest.param(b"200 OK\r\ncontent-length: 6\r\n\r\n<html>", "is not a gateway", id="another server"),
        pytest.param(
            b"404 Not Found\r\ncontent-length: 6\r\n\r\n<html>",
            "is not a gateway, it answered 404: check its URL",
            id="another server without the path",
        ),
    ],
)
def test_an_answer_of_another_server_is_reported(answer: bytes, expected: str) -> None:
    """In a sentence."""
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        variables = {
            "PUSHGATE_URL": f"http://127.0.0.1:{gateway.getsockname()[1]}",
            "PUSHGATE_ADMIN_TOKEN": "x",
        }
        with ThreadPoolExecutor() as threads:
            asking = threads.submit(run, "connections", variables=variables)
            client, _ = gateway.accept()
            with client:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 " + answer)
            done = asking.result()
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_admin_token_is_reported(service: Service) -> None:
    """And no data is shown."""
    done = run("connections", service=service, variables={"PUSHGATE_ADMIN_TOKEN": "wrong"})
    assert (done.returncode, done.stdout) == (1, "")
    assert "the gateway does not accept the admin token of PUSHGATE_ADMIN_TOKEN: sign in" in done.stderr


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_connect_says_what_to_do_at_the_provider(service: Service, provider: str) -> None:
    """Where to click, which events, and which limit applies."""
    url = "https://git.example/acme/digits.git"
    done = run("connect", url, "--provider", provider, "--project", "p", service=service)
    assert done.returncode == 0
    steps = done.stdout[done.stdout.index("Next:") :].splitlines()
    assert [line.strip()[:2] for line in steps[1:5]] == ["1.", "2.", "3.", "4."]
    assert steps[5].strip().startswith("Limitation: ")


CONNECT = ("connect", "git@h:a/b", "--provider", "github", "--project", "p")


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (("connections",), {"PUSHGATE_URL": "http://[::1"}, "cannot send a request to"),
        (("connections",), {"PUSHGATE_ADMIN_TOKEN": "the\nsecret ☃"}, "cannot send a request to"),
        (
            ("send", "http://[", "/dev/null", "--provider", "github", "--secret", "x"),
            {},
            "cannot send a request to",
        ),
        (
            ("send", "http://h/ä", "/dev/null", "--provider", "github", "--secret", "x", "--event", "a\nb"),
            {},
            "cannot send a request to",
        ),
        (
            ("connect", "u", "--provider", "github", "--project", "p", "--private-key", "EMPTY"),
            {},
            "is empty",
        ),
        (
            ("connect", "u", "--provider", "github", "--project", "p", "--password-file", "EMPTY"),
            {},
            "is empty",
        ),
        ((*CONNECT, "--host-keys", "EMPTY"), {}, "is empty"),
        (("serve", "--host", ""), {}, "the setting host"),
        (("send", "http://h", "/dev/null", "--provider", "generic", "--secret", "whsec_%"), {}, "not whsec_"),
        (("executions", "--follow", "--state", "pending"), {}, "omit the filters"),
        (("executions", "--until", "soon"), {}, "--until soon: give a date such as"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], variables: Mapping[str, str], expected: str
) -> None:
    """Never a traceback, which might show a token; an empty file is an error too."""
    empty = tmp_path / "empty"
    empty.touch()
    given = [str(empty) if one == "EMPTY" else one for one in arguments]
    done = run(*given, variables={"PUSHGATE_ADMIN_TOKEN": "x", **variables})
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret ☃" not in done.stderr


def test_nothing_that_was_pushed_controls_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither in JSON, which stays the same for machines, nor in output for people."""
    text = "a\x9b2Jb\x1b[31m\u202ec\x7f\u2028d\ud800"
    print_json({"reason": text})
    shown = capsys.readouterr().out
    assert json.loads(shown) == {"reason": text}
    assert not set("\x9b\x1b\u202e\x7f\u2028\ud800") & set(shown)
    assert escape(f"{text}\n[red]") == "a\\x9b2Jb\\x1b[31m\\u202ec\\x7f\\u2028d\\ud800\n\\[red]"
