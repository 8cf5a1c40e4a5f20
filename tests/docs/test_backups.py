"""The commands of docs/restore.md: what they back up is restored by the others, and is complete."""

import os
import re
import subprocess
from contextlib import closing
from pathlib import Path

from pydantic import SecretStr

from gateway.data_dir import learn_refs
from gateway.settings import Settings
from gateway.store.database import Database
from testing import records
from testing.postgres import Postgres, program_path
from testing.service import Project, Service, run_pushgate
from tests.docs.documented import ROOT

PAGE = (ROOT / "docs" / "restore.md").read_text(encoding="utf-8")


def run(mark: str, folder: Path, *, data: Path | None = None, **variables: str) -> None:
    """Run the block behind a mark of the page, in a folder, with a data folder in place of DIR."""
    block = re.search(rf"<!-- {mark} -->\n\n((?: {{4,}}\S.*\n)+)", PAGE)
    assert block is not None, mark
    path = f"{Path(program_path('pg_dump')).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-ec", re.sub(r"\bDIR\b", str(data), block[1])],
        cwd=folder,
        env={"PATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_copy_of_a_data_folder_is_a_whole_gateway(project: Project, tmp_path: Path) -> None:
    """With SQLite: the webhook's secret is valid, and the package of an execution is there."""
    copy = tmp_path / "copy"
    copy.mkdir()
    with Service(tmp_path / "data") as service:
        connection = service.connect(project.url, "train@main")
        _, answer = service.deliver(connection, project.payload(None, project.first))
        service.settled(answer["delivery"])
        [execution] = service.api.get("/executions")["items"]
        run("backup: sqlite", tmp_path, data=service.data)
    run("restore: sqlite", tmp_path, data=copy)
    done = run_pushgate("restore", "--learn", "--data", copy)
    assert done.returncode == 0, done.stderr
    with Service(copy) as service:
        assert service.deliver(connection, project.payload(None, project.first))[1]["verdict"] == "duplicate"
        url = service.api.get(f"/executions/{execution['id']}")["message"]["package"]["url"]
        path = url.removeprefix(service.url)
        assert service.api.root(path)[0] == 200


def test_the_dump_of_a_database_is_restored(postgres: Postgres, tmp_path: Path) -> None:
    """With PostgreSQL: into a new database, and again into the same one."""
    old, new = postgres.database(), postgres.database()
    with closing(Database(old)) as database:
        database.migrate()
        records.connection(database)
    run("backup: postgresql", tmp_path, DATABASE_URL=old)
    for number in (1, 2):
        run("restore: postgresql", tmp_path, DATABASE_URL=new)
        folder = tmp_path / f"data-{number}"
        settings = Settings(data_dir=folder, database_url=SecretStr(new), secret_key=SecretStr("k" * 64))
        assert learn_refs(settings) == 1
