"""A store to try."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.store.database import Database
from gateway.store.vault import Vault


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give an empty database of either kind: what holds for one holds for the other."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    made: str = request.getfixturevalue("postgres").database()
    return made


@pytest.fixture
def database(url: str, tmp_path: Path, migrated: Path) -> Iterator[Database]:
    """Give an empty database with the present schema."""
    database = Database(url)
    if database.is_embedded:
        shutil.copyfile(migrated, tmp_path / "test.db")
    else:
        database.migrate()
    yield database
    database.close()


@pytest.fixture
def embedded(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    """Give an empty SQLite: for what has nothing to do with the kind of the database."""
    with closing(Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")) as database:
        yield database


@pytest.fixture
def vault() -> Vault:
    """Give a vault."""
    return Vault("k" * 32)
