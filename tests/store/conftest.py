"""Fixtures: stores."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.crypto.keyring import Keyring
from gateway.store.database import Database
from testing.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return each kind of database in turn: both must pass every test."""
    made: str = request.param
    return made


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return an empty database."""
    if kind == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    made: str = request.getfixturevalue("postgres").database()
    return made


@pytest.fixture(scope="session")
def migrated_server(postgres: Postgres) -> str:
    """Return a PostgreSQL database with the present schema, for copies."""
    url = postgres.database()
    with closing(Database(url)) as database:
        database.migrate()
    return url


@pytest.fixture
def database(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Return an empty database with the present schema."""
    if kind == "sqlite":
        path = shutil.copyfile(request.getfixturevalue("migrated"), tmp_path / "test.db")
        url = f"sqlite:///{path}"
    else:
        url = request.getfixturevalue("postgres").database(like=request.getfixturevalue("migrated_server"))
    with closing(Database(url)) as database:
        yield database


@pytest.fixture
def embedded(tmp_path: Path, migrated: Path) -> Iterator[Database]:
    """Return an empty SQLite: for tests that do not depend on the kind of database."""
    with closing(Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")) as database:
        yield database


@pytest.fixture
def keyring() -> Keyring:
    """Return a keyring."""
    return Keyring("k" * 32)
