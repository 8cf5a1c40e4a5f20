"""The command that runs the gateway: settings, the first start, one data folder."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from testing.service import PUSHGATE, Project, Service, wait_for
from testing.service import run_pushgate as run


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


def test_two_gateways_on_one_data_folder_are_refused(service: Service, project: Project) -> None:
    """Both would publish its requests. The first goes on; after a SIGKILL the folder is free again."""
    second = run("serve", "--port", "0", "--data", service.data)
    assert second.returncode == 1
    assert f"a gateway runs on the data folder {service.data}" in second.stderr
    connection = service.connect(project.url)
    service.kill()
    service.start()
    assert [one["id"] for one in service.api.get("/connections")["items"]] == [connection["id"]]
