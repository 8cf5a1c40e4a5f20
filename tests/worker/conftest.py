"""Fixtures for the tests of the worker and of the reconciler."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.store.database import Database
from testing import records
from testing.records import A
from tests.worker import acme
from tests.worker.reconciling import MAIN, Gateway, Remote
from tests.worker.stages import FaultyDatabase


@pytest.fixture
def gateway(tmp_path: Path, migrated: Path) -> Iterator[Gateway]:
    """Return a gateway that has looked once, at a remote with main at A."""
    shutil.copyfile(migrated, tmp_path / "test.db")
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    records.connection(database)
    gateway = Gateway(database, Remote({MAIN: A}))
    assert gateway.look()
    yield gateway
    database.close()


@pytest.fixture
def database(tmp_path: Path, migrated: Path) -> Iterator[FaultyDatabase]:
    """Return an empty database that fails where a test wants it."""
    shutil.copyfile(migrated, tmp_path / "worker.db")
    database = FaultyDatabase(f"sqlite:///{tmp_path / 'worker.db'}")
    yield database
    database.close()


@pytest.fixture
def sourced(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    """Return a database with a source of the organisation acme."""
    database = Database(f"sqlite:///{shutil.copy(migrated, tmp_path / 'sources.db')}")
    acme.add(database)
    yield database
    database.close()
