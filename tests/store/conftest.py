"""A store to try."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.store.database import Database
from gateway.store.vault import Vault


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Give an empty database with the present schema."""
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def vault() -> Vault:
    """Give a vault."""
    return Vault("k" * 32)
