"""The command `pushgate`, as people and scripts run it."""

import itertools
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
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


def test_a_follower_goes_on_when_the_gateway_starts_again(service: Service, project: Project) -> None:
    """It continues where it stopped, with a message; a gateway that stays down is an error."""
    connection = service.connect(project.url, "train@*")
    seen: list[str] = []
    interruptions: list[str] = []
    ended: list[Exception] = []

    def follow() -> None:
        try:
            followed = service.api.executions(interrupted=interruptions.append, patience=20)
            seen.extend(one["message"]["ref"]["name"] for one in followed)
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
    wait_for(lambda: interruptions, "the end of the stream is reported")
    service.start(port)
    push("after")
    wait_for(lambda: "after" in seen, "the follower has gone on")
    assert len(seen) == len(set(seen))
    service.kill()
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
    assert "The repository can be read: it has 1 branches and tags." in done.stdout
    missing = githost.url("acme/missing.git")
    done = run(*CONNECT_TO, missing, service=service)
    assert done.returncode == 0
    assert "Warning: the repository cannot be read: " in done.stdout
    assert "Connected acme/missing" in done.stdout


def test_connect_warns_of_a_webhook_url_that_the_provider_cannot_reach(tmp_path: Path) -> None:
    """The default names this machine, so it works only from this machine."""
    with Service(tmp_path / "data", ROLE="web") as service:
        done = run(*CONNECT_TO, "git@github.com:acme/digits.git", "--wait=0", service=service)
        assert "Warning: github.com cannot reach 127.0.0.1" in done.stderr
        assert "PUSHGATE_PUBLIC_URL" in done.stderr
        assert "has not been read yet" in done.stdout


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
    assert (done.returncode, "there is no connection nope" in done.stderr) == (1, True)


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
        pytest.param(b"content-length: 100\r\n\r\n{", "cannot reach", id="killed in the middle of it"),
        pytest.param(b"content-length: 6\r\n\r\n<html>", "is not a gateway", id="another server"),
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
                client.sendall(b"HTTP/1.1 200 OK\r\n" + answer)
            done = asking.result()
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_admin_token_is_reported(service: Service) -> None:
    """And no data is shown."""
    done = run("connections", service=service, variables={"PUSHGATE_ADMIN_TOKEN": "wrong"})
    assert (done.returncode, done.stdout) == (1, "")
    assert "admin token" in done.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"PUSHGATE_PROT": "1"},
            "PUSHGATE_PROT is set in the environment, but Pushgate has no such setting; do you mean ",
        ),
        ({"PUSHGATE_PORT": "tcp://10.0.0.1:80"}, "the setting port (PUSHGATE_PORT) is wrong"),
        ({"PUSHGATE_AMQP_URL": "http://s3cret@x"}, "the setting amqp_url"),
        ({"PUSHGATE_SECRET_KEY": "short"}, "PUSHGATE_SECRET_KEY has 5 characters"),
        ({"PUSHGATE_DATABASE_URL": "postgresql+psycopg://s3cret@x/y"}, "PUSHGATE_SECRET_KEY must be set"),
        ({"PUSHGATE_CONFIG": "/there/is/none.yaml"}, "the settings file /there/is/none.yaml does not exist"),
    ],
)
def test_a_wrong_setting_stops_the_start(tmp_path: Path, variables: dict[str, str], expected: str) -> None:
    """With one sentence that names it, and not its value."""
    done = run("serve", "--data", tmp_path / "data", variables=variables)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "s3cret" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_reported(tmp_path: Path) -> None:
    """Before anything runs: one sentence says what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--port", port, "--data", tmp_path / "data")
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose another" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_settings_come_from_the_command_line_the_environment_secrets_and_a_file(tmp_path: Path) -> None:
    """In this order; and an unknown key of the file is refused as well."""
    from gateway.errors import SettingError  # noqa: PLC0415 - read in this process, on its own
    from gateway.settings import read_settings  # noqa: PLC0415 - the same

    config = tmp_path / "pushgate.yaml"
    config.write_text("port: 1\nconcurrency: 2\nbody_limit: 2048\nfetch_hosts: [a.example, b.example]\n")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "PUSHGATE_ADMIN_TOKEN").write_text("token\n")
    settings = read_settings(given={"port": 3}, config=config, secrets_dir=secrets)
    assert (settings.port, settings.concurrency, settings.body_limit) == (3, 2, 2048)
    assert settings.fetch_hosts == ("a.example", "b.example")
    assert settings.admin_token is not None
    assert settings.admin_token.get_secret_value() == "token"
    for text, expected in (
        ("prot: 1\n", "no setting prot"),
        ("[", "cannot read the settings"),
        ("[1]", "cannot read the settings"),
    ):
        config.write_text(text)
        with pytest.raises(SettingError, match=expected):
            read_settings(given={}, config=config)
    (secrets / "pushgate_amdin_token").touch()
    with pytest.raises(SettingError, match="pushgate_amdin_token is in the secrets folder"):
        read_settings(given={}, secrets_dir=secrets)
    with pytest.raises(SettingError, match=r"the secrets folder .* does not exist"):
        read_settings(given={}, secrets_dir=tmp_path / "nowhere")
    with pytest.raises(SettingError, match="the setting public_url"):
        read_settings(given={"public_url": "http://["})


@contextmanager
def first_start(data: Path, stderr: int) -> Iterator[None]:
    """Start a gateway on a new data folder that logs into this file."""
    process = subprocess.Popen(
        [PUSHGATE, "serve", "--port", "0", "--data", data],
        env={**os.environ, "PUSHGATE_LOG_FORMAT": "json"},
        stderr=stderr,
    )
    with process:
        try:
            yield
        finally:
            process.terminate()


def test_the_first_start_makes_a_token_that_the_commands_find(tmp_path: Path) -> None:
    """It is derived at each start: no file holds it, least of all a log; `keys token` prints it."""
    data, log = tmp_path / "data", tmp_path / "log"

    def listening() -> Any:
        return next((line for line in log.read_text().splitlines() if '"listening"' in line), None)

    with log.open("wb") as written, first_start(data, written.fileno()):
        line = wait_for(listening, "the gateway listens")
        url = "http://" + json.loads(line)["address"]
        done = run("connections", "--json", "--data", data, variables={"PUSHGATE_URL": url})
    assert json.loads(done.stdout) == {"items": [], "next": None}
    token = run("keys", "token", "--data", data).stdout.strip()
    assert len(token) == 64
    assert not any(token.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_first_start_at_a_terminal_shows_the_token(tmp_path: Path) -> None:
    """Once, on the terminal."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, encoding="utf-8") as seen, first_start(tmp_path / "data", theirs):
        os.close(theirs)
        line_with_token = next(line for line in seen if "shown only once" in line)
    token = run("keys", "token", "--data", tmp_path / "data").stdout.strip()
    assert token in line_with_token


@pytest.mark.parametrize("provider", sorted(PROVIDERS))
def test_connect_says_what_to_do_at_the_provider(service: Service, provider: str) -> None:
    """Where to click, which events, and which limit applies."""
    url = "https://git.example/acme/digits.git"
    done = run("connect", url, "--provider", provider, "--project", "p", service=service)
    assert done.returncode == 0
    steps = done.stdout[done.stdout.index("Next:") :].splitlines()
    assert [line.strip()[:2] for line in steps[1:5]] == ["1.", "2.", "3.", "4."]
    assert steps[5].strip().startswith("Limitation: ")


def test_two_gateways_on_one_data_folder_are_refused(service: Service, project: Project) -> None:
    """Both would publish its requests. The first goes on; after a SIGKILL the folder is free again."""
    second = run("serve", "--port", "0", "--data", service.data)
    assert second.returncode == 1
    assert f"a gateway runs on the data folder {service.data}" in second.stderr
    connection = service.connect(project.url)
    service.kill()
    service.start()
    assert [one["id"] for one in service.api.get("/connections")["items"]] == [connection["id"]]


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
        (("executions", "--follow", "--state", "pending"), {}, "omit --connection"),
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
