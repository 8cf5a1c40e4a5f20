"""A store for tests of the door in this process."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.store.database import Database


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """Give a database without connections."""
    database = Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    yield database
    database.close()
