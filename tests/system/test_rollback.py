"""The version before works on the schema of the next one: while an upgrade goes on, and after a rollback.

It is the code from before the newest migration, taken from the history; a clone without one skips this, and
tests/store/test_migrations.py checks each migration in any case.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.store import migrations
from gateway.store.migrations import USABLE_SINCE
from testing.service import Project, Service

ROOT = Path(__file__).parents[2]
NEWEST = max((Path(migrations.__file__).parent / "versions").glob("[0-9]*.py"))


def git(*arguments: str) -> bytes:
    """Return git's output, empty if git fails."""
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """Return the folder with the code from before the newest migration."""
    path = str(NEWEST.relative_to(ROOT))
    added = git("log", "--diff-filter=A", "--format=%H", "-1", "--", path).decode().strip()
    archive = git("archive", f"{added}^", "gateway", "providers") if added else b""
    if not archive:
        pytest.skip("the history of the newest migration is not here")
    folder = tmp_path / "before"
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    if not (folder / "gateway/store/migrate.py").exists():
        pytest.skip("the version before does not know yet of later schemas that it could use")
    return folder


class Before(Service):
    """A gateway of the version before."""

    code: Path

    def _launched(self, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from gateway.cli.main import main; main()", *arguments]
        own = {**environment, "PYTHONPATH": str(self.code)}
        with self._log.open("ab") as log:
            # Python imports from the current folder first.
            return subprocess.Popen(command, env=own, stderr=log, cwd=self.code)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_version_before_works_on_this_schema(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, project: Project, before: Path
) -> None:
    """It starts, processes a push, and leaves data that this version can continue with."""
    data, settings = tmp_path / "data", {"SECRET_KEY": "s" * 32}
    if NEWEST.name.startswith(USABLE_SINCE):
        pytest.skip("the newest migration is the one from which on they only add")
    if kind == "postgresql":
        settings["DATABASE_URL"] = request.getfixturevalue("postgres").database()
    rolled_back = Before(data, **settings)
    rolled_back.code = before
    connection, last = None, project.first
    for number, service in enumerate((Service(data, **settings), rolled_back, Service(data, **settings))):
        with service:
            connection = connection or service.connect(project.url, "train@main")
            pushed = project.push(f"Number {number}", {"train.py": f"print({number})\n"})
            _, answer = service.deliver(connection, project.payload(last, pushed))
            [update] = service.settled(answer["delivery"])["updates"]
            assert (update["state"], update["after"]) == ("planned", pushed)
            assert len(service.api.get("/executions")["items"]) == number + 1
            assert service.stop() == 0
        last = pushed
    logged = [line["event"] for line in rolled_back.log()]
    assert "the schema is of a later version, and works with this one" in logged
