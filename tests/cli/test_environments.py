"""Odd locales, folders, users and databases. Each fault is reported in one sentence."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest

from gateway.settings import read_settings
from gateway.store.database import Database
from testing.git_host import GitHost
from testing.postgres import Postgres
from testing.service import PUSHGATE, Command, Project, Service, run_interpreter, run_pushgate

# A locale with only ASCII, and a Python without its UTF-8 mode.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PASSWORD = "pässwörd"


def test_a_locale_without_utf8_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords go out as UTF-8, branches have their names, and commands print what they can."""
    for name, value in ASCII.items():
        monkeypatch.setenv(name, value)
    password = tmp_path / "password"
    password.write_text(PASSWORD, encoding="utf-8")
    with (
        GitHost(tmp_path / "git") as open_host,
        GitHost(tmp_path / "git", credentials=f"ada:{PASSWORD}") as host,
        Command(tmp_path / "data") as service,
    ):
        project = Project(open_host, tmp_path)
        done = run_interpreter(
            *("connect", host.url("acme/digits.git"), "--provider=github", "--project=digits"),
            *("--trigger=train@**", "--user=ada", f"--password-file={password}"),
            service=service,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "The repository can be read" in done.stdout
        [made] = service.api.get("/connections")["items"]
        service.api.send("PATCH", f"/connections/{made['id']}", {"name": "büro"})
        fresh = service.api.send("POST", f"/connections/{made['id']}/rotate-secret")
        connection = {**fresh, "path": f"/hooks/{made['id']}"}
        project.tree.push("HEAD:refs/heads/büro")
        _, answer = service.deliver(connection, project.payload(None, project.first, "refs/heads/büro"))
        [update] = service.settled(answer["delivery"])["updates"]
        assert (update["state"], update["name"]) == ("planned", "büro"), update["reason"]
        for command in ("explain", "deliveries"):
            shown = run_interpreter(command, answer["delivery"], service=service)
            assert (shown.returncode, shown.stderr) == (0, "")
            assert "trigger train@**: branch b?ro" in shown.stdout
        listed = run_interpreter("connections", "--json", service=service)
        assert [one["name"] for one in json.loads(listed.stdout)["items"]] == ["büro"]
        assert run_interpreter("connections", service=service).returncode == 0


def test_a_data_folder_may_have_any_name(tmp_path: Path, project: Project) -> None:
    """Also with characters that are special in a URL; the database is in it, and pushes run."""
    data = tmp_path / "100%20 sure? #1"
    with Service(data) as service:
        connection = service.connect(project.url, "train@main")
        _, answer = service.deliver(connection, project.payload(None, project.first))
        [update] = service.settled(answer["delivery"])["updates"]
        assert update["state"] == "planned", update["reason"]
    assert (data / "pushgate.db").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"git", "clone", data.name, f"{data.name}.log"}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be a user that nobody has made")
def test_a_user_without_a_home_has_to_name_a_folder() -> None:
    """As in containers, where a user is only a number."""
    environment = {name: value for name, value in os.environ.items() if name not in {"HOME", "XDG_DATA_HOME"}}
    for command in ("connections", "serve"):
        done = subprocess.run(
            ["setpriv", "--reuid=54321", "--clear-groups", PUSHGATE, command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
        assert "HOME is not set" in done.stderr


def start(data: Path, variables: Mapping[str, str]) -> str:
    """Start a gateway that cannot start, and return its error."""
    done = run_pushgate("serve", "--port=0", "--data", data, variables=variables)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "s3cret" not in done.stderr
    [sentence] = done.stderr.splitlines()
    return sentence


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nonsense", "it cannot be read"),
        ("postgresql://ada:s3cret@h:port/d", "it cannot be read"),
        ("mysql://ada:s3cret@h/d", "cannot use mysql"),
        ("postgresql+asyncpg://ada:s3cret@h/d", "cannot use postgresql+asyncpg"),
        ("sqlite://", "it names no file"),
        ("postgresql://ada:s3cret@127.0.0.1:9/d?nope=1", 'invalid connection option "nope"'),
        ("postgresql://ada:s3cret@127.0.0.1:9/d", "the database does not answer"),
        ("sqlite:////there/is/none/p.db", "unable to open database file (/there/is/none/p.db)"),
    ],
)
def test_a_wrong_database_url_is_reported(tmp_path: Path, url: str, expected: str) -> None:
    """With what to write instead, and without the password."""
    variables = {"PUSHGATE_DATABASE_URL": url, "PUSHGATE_SECRET_KEY": "s" * 32}
    assert expected in start(tmp_path / "data", variables)


def test_a_damaged_database_is_reported(tmp_path: Path) -> None:
    """With its file, and the remedy."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "pushgate.db").write_bytes(b"no database " * 1000)
    sentence = start(data, {})
    assert "the database is damaged: file is not a database; restore it from a back-up" in sentence
    assert str(data / "pushgate.db") in sentence


def test_a_key_that_is_no_text_is_reported(tmp_path: Path) -> None:
    """At the gateway's start, and by the command that prints the token."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "secret.key").write_bytes(b"\xff" * 64)
    assert "secret.key does not hold a key" in start(data, {})
    assert "secret.key does not hold a key" in run_pushgate("keys", "token", "--data", data).stderr


@pytest.mark.parametrize("name", ["SIGNERS_FILE", "AMQP_CA_FILE", "AMQP_CERT_FILE", "AMQP_KEY_FILE"])
def test_a_file_that_a_setting_names_has_to_be_there(tmp_path: Path, name: str) -> None:
    """At the start, not at the first commit or connection that needs it."""
    sentence = start(tmp_path / "data", {f"PUSHGATE_{name}": "/there/is/none"})
    assert f"PUSHGATE_{name}) is wrong: cannot read /there/is/none: No such file" in sentence


def test_a_database_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    """As on a volume mounted read-only; at the start, not at the first push."""
    data = tmp_path / "data"
    database = Database(read_settings(given={"data_dir": data}).database)
    data.mkdir()
    database.migrate()
    database.close()
    file = data / "pushgate.db"
    shutil.copy(file, tmp_path / "copy.db")
    read_only = f"sqlite:///file:{tmp_path / 'copy.db'}?mode=ro&uri=true"
    variables = {"PUSHGATE_DATABASE_URL": read_only}
    assert "attempt to write a readonly database" in start(data, variables)


def test_a_full_disk_at_the_start_is_reported(tmp_path: Path) -> None:
    """Here no file may grow beyond some kilobytes, which looks like a full disk to a process."""
    limited = ["prlimit", "--fsize=8192", str(PUSHGATE), "serve", "--port=0", f"--data={tmp_path / 'data'}"]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_limits_of_time_hold_where_a_pooler_takes_no_options(postgres: Postgres) -> None:
    """They are set on each connection of either driver, since PgBouncer refuses start-up options."""
    url = postgres.database()
    database = Database(url)
    assert "options" not in str(database.engine.dialect.create_connect_args(database.url))
    with database.engine.connect() as connection:
        found = connection.exec_driver_sql("SHOW statement_timeout").scalar()
        connection.rollback()
        assert (found, connection.exec_driver_sql("SHOW statement_timeout").scalar()) == ("1min", "1min")
        assert connection.exec_driver_sql("SHOW plan_cache_mode").scalar() == "force_custom_plan"
    database.close()
    with psycopg.connect(url) as plain:
        assert plain.execute("SHOW statement_timeout").fetchone() == ("0",)
