"""Fixtures for all tests: a git server, a broker, a gateway."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from testing.broker import Broker
from testing.git_host import GitHost
from testing.postgres import Postgres
from testing.service import Project, Service, migrated_database

# Only what the README requires is on PATH: no `python`, which Debian does not have.
os.environ["PATH"] = os.pathsep.join(
    [
        str(Path(__file__).parent / "no-python"),
        *(
            folder
            for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)
            if folder in {"/usr/local/bin", "/usr/bin", "/bin"} or not Path(folder, "python").exists()
        ),
    ]
)

# No example fails for its duration: on a busy machine that is no fault of ours.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# These take the longest. They start first, so that no process still runs one when the others have ended.
_SLOW_FILES = {
    "test_cluster",
    "test_dashboard",
    "test_examples",
    "test_faults",
    "test_generated_clients",
    "test_main_job",
    "test_moves",
    "test_relay",
    "test_rollback",
    "test_sources",
    "test_upgrade",
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort tests of slow files to the front; within both parts, the random order stays."""
    items.sort(key=lambda item: item.path.stem not in _SLOW_FILES)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """Start a RabbitMQ node; this takes seconds, so all tests share it."""
    with Broker() as broker:
        yield broker


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Start a PostgreSQL server; each test has its own database in it."""
    with Postgres() as postgres:
        yield postgres


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an SQLite file with the current schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "pushgate.db"
    path.write_bytes(migrated_database())
    return path


@pytest.fixture
def githost(tmp_path: Path) -> Iterator[GitHost]:
    """Start a git server."""
    with GitHost(tmp_path / "git") as host:
        yield host


@pytest.fixture
def project(githost: GitHost, tmp_path: Path) -> Project:
    """Return a repository with one commit on main."""
    return Project(githost, tmp_path)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Start a gateway with its embedded store and no broker."""
    with Service(tmp_path / "data") as service:
        yield service
