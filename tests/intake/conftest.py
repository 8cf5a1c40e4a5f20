"""A store for tests of the webhook endpoint in this process."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.store.database import Database


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """Return a database without connections."""
    database = Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    yield database
    database.close()
