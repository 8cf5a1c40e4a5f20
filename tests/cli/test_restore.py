"""A database that was restored from a back-up: `pushgate restore --learn` before the gateway starts on it."""

import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.data_dir import learn_refs
from gateway.errors import SettingError
from gateway.settings import Settings
from gateway.store import claims
from gateway.store.database import Database
from testing import records
from testing.postgres import Postgres
from testing.service import Project, Service, run_pushgate, wait_for


def copy(source: Path, target: Path) -> None:
    """Copy a database as the page on restoring describes, while the gateway runs."""
    with closing(sqlite3.connect(source)) as there, closing(sqlite3.connect(target)) as here:
        there.backup(here)


def put_back(backup: Path, data: Path) -> None:
    """Replace the database by the copy, without SQLite's files next to it."""
    for suffix in ("", "-wal", "-shm"):
        (data / f"pushgate.db{suffix}").unlink(missing_ok=True)
    copy(backup, data / "pushgate.db")


def executed(service: Service) -> list[str]:
    """Return the commits of all execution requests, in order."""
    items = service.api.get("/executions")["items"]
    return [one["message"]["commit"]["id"] for one in reversed(items)]


def learned(service: Service, connection: Any) -> Any:
    """Wait until the remote's refs were compared with the known ones, and return the result."""

    def looked() -> Any:
        reconciliation = service.api.get(f"/connections/{connection['id']}")["reconciliation"]
        return reconciliation if reconciliation["reconciled_at"] else None

    return wait_for(looked, "the refs are known")


def push(service: Service, connection: Any, project: Project, before: str, text: str) -> str:
    """Push a commit, deliver it, and return it once it is planned."""
    commit = project.push(text, {"train.py": f"print({text!r})\n"})
    _, answer = service.deliver(connection, project.payload(before, commit))
    service.settled(answer["delivery"])
    return commit


def test_what_was_run_since_the_back_up_is_not_run_again(project: Project, tmp_path: Path) -> None:
    """The first look only learns, also new and deleted branches; the next push runs as usual."""
    data, backup = tmp_path / "data", tmp_path / "copy.db"
    with Service(data, RECONCILE_GRACE="0") as service:
        connection = service.connect(project.url, "train@*")
        learned(service, connection)
        project.tree.push("main:refs/heads/gone")
        service.fetched(connection)
        first = push(service, connection, project, project.first, "first")
        copy(data / "pushgate.db", backup)
        second = push(service, connection, project, first, "second")
        project.tree.push("main:refs/heads/new", ":refs/heads/gone")
        service.fetched(connection)
        before = executed(service)
        assert before == [project.first, first, second, second]
        service.stop()
    put_back(backup, data)

    done = run_pushgate("restore", "--learn", "--data", data, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"connections": 1}), done.stderr
    with Service(data, RECONCILE_GRACE="0") as service:
        assert learned(service, connection)["delivery"] is None
        assert executed(service) == [project.first, first]
        assert service.fetched(connection) == []
        third = push(service, connection, project, second, "third")
        assert executed(service) == [project.first, first, third]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--learn"], "a gateway runs on the data folder"), ([], "restore requires --learn")],
)
def test_what_keeps_it_from_working_is_one_sentence(
    service: Service, arguments: list[str], expected: str
) -> None:
    """For example a running gateway, which may have looked already."""
    done = run_pushgate("restore", *arguments, "--data", service.data)
    assert (done.returncode, len(done.stderr.splitlines()), expected in done.stderr) == (1, 1, True), (
        done.stderr
    )


def test_workers_on_other_machines_are_named(postgres: Postgres, tmp_path: Path) -> None:
    """Those that are alive, on a shared database; and nothing is changed."""
    url = postgres.database()
    settings = Settings(
        data_dir=tmp_path / "data", database_url=SecretStr(url), secret_key=SecretStr("k" * 64)
    )
    assert learn_refs(settings) == 0
    with closing(Database(url)) as database:
        records.connection(database)
        now = datetime.now(UTC)
        with database.writing() as conn:
            claims.beat(conn, "worker-0:/data", now=now)
        with pytest.raises(SettingError, match="such as worker-0:/data: stop them first"):
            learn_refs(settings)
        with database.writing() as conn:
            claims.leave(conn, "worker-0:/data")
            claims.beat(conn, "worker-1:/data", now=now - timedelta(minutes=1))
        assert learn_refs(settings) == 1
