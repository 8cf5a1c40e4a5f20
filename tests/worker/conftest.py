"""Fixtures: a gateway that has reconciled its connection once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.store.database import Database
from testing import records
from testing.records import A
from tests.worker.reconciling import MAIN, Gateway, Remote


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
