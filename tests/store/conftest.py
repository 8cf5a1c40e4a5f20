"""Fixtures: stores."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import update

from gateway.crypto.keyring import Keyring
from gateway.store import tables
from gateway.store.database import Database
from testing import records
from testing.postgres import Postgres
from testing.records import NOW, A, B, C, connection, move
from tests.store.accepting import HOUR
from tests.store.reconciling import look
from tests.store.requests import LATEST, plan, push


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


@pytest.fixture
def learned(database: Database) -> Database:
    """Return a store whose one connection has main at A, from a first look."""
    records.connection(database)
    look(database, move(None, A))
    return database


@pytest.fixture
def three(embedded: Database) -> Database:
    """Return a database with the connections c1, c2 and c3, whose reconciliations are due in an hour."""
    for name in ("c1", "c2", "c3"):
        connection(embedded, name)
    with embedded.writing() as conn:
        conn.execute(update(tables.reconciliations).values(due_at=NOW + HOUR))
    return embedded


@pytest.fixture
def two_moves(database: Database) -> Database:
    """Return a store with two moves of main, and requests of two triggers for each."""
    connection(database)
    for name, ends in (("d1", (A, B)), ("d2", (B, C))):
        ref_update = push(database, name, *ends)
        both = (replace(LATEST, id=f"{name}-{trigger}", delivery=name, trigger=trigger) for trigger in "ab")
        plan(database, ref_update, *both)
    return database


@pytest.fixture
def server(postgres: Postgres) -> Iterator[Database]:
    """Return an empty PostgreSQL database, without tables."""
    with closing(Database(postgres.database())) as database:
        yield database
