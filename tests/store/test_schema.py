"""The tables and the migrations that lead to them."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from structlog.testing import capture_logs

from gateway.errors import StoreUnavailable
from gateway.store.database import Database
from gateway.store.migrations import USABLE_SINCE
from gateway.store.tables import metadata


def test_the_migrations_lead_to_the_tables(database: Database) -> None:
    """The migrations make the schema that the code expects."""
    with database.reading() as conn:
        # PostgreSQL cannot compare two JSON values, which Alembic would try.
        opts = {"compare_server_default": database.is_embedded}
        context = MigrationContext.configure(conn, opts=opts)
        assert compare_metadata(context, metadata) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    """A start finds the schema of the last one."""
    database.migrate()
    with database.reading() as conn:
        assert conn.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1


def of_a_later_version(database: Database, *, usable_since: str) -> None:
    """Make the schema a later one, which records which code works on it."""
    with database.writing() as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        mark = text("UPDATE schema_compatibility SET usable_since = :since")
        assert conn.execute(mark, {"since": usable_since}).rowcount == 1


def test_a_later_schema_that_only_adds_is_used(database: Database) -> None:
    """After a rollback the earlier version starts, logs it, and changes nothing."""
    of_a_later_version(database, usable_since=USABLE_SINCE)
    with capture_logs() as logs:
        database.migrate()
    assert [log["event"] for log in logs] == ["the schema is of a later version, and works with this one"]
    with database.reading() as conn:
        assert conn.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_database_of_a_later_version_is_refused(database: Database, *, is_marked: bool) -> None:
    """If something was removed, the earlier version says what to do, and changes nothing."""
    of_a_later_version(database, usable_since="9998")
    if not is_marked:
        with database.writing() as conn:
            conn.execute(text("DROP TABLE schema_compatibility"))
    with pytest.raises(StoreUnavailable, match=r"later version of Pushgate: its schema is 9999, .* restore"):
        database.migrate()
    with database.reading() as conn:
        assert conn.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"


def test_a_migration_that_would_leave_a_reference_to_nothing_is_taken_back(tmp_path: Path) -> None:
    """SQLite checks references once all tables have been rebuilt; the message names the table."""
    with closing(Database(f"sqlite:///{tmp_path / 'broken.db'}")) as database:
        database.migrate("0001")
        with database.engine.connect() as connected:
            driver: Any = connected.connection.driver_connection
            driver.execute("PRAGMA foreign_keys = OFF")
            driver.execute("INSERT INTO leases VALUES ('no such', NULL, NULL, 0, '2026-11-23')")
            driver.execute("PRAGMA foreign_keys = ON")
        with pytest.raises(
            StoreUnavailable, match="a row of leases refers to one of connections that is not"
        ):
            database.migrate()
        with database.reading() as conn:
            assert conn.execute(text("SELECT version_num FROM alembic_version")).scalar() == "0001"


def test_connections_from_before_quotas_learn_their_host(url: str) -> None:
    """The host of their URL, by any of its names."""
    database = Database(url)
    database.migrate("0006")
    with database.writing() as conn:
        conn.exec_driver_sql(
            "INSERT INTO connections"
            " (id, name, provider, url, project, auth, triggers, yaml_path, created_at, updated_at) VALUES"
            " ('c1', 'n', 'github', 'git@ssh.github.com:acme/digits.git', 'p', '{}', '[]', 'y',"
            " CURRENT_TIMESTAMP, CURRENT_TIMESTAMP)"
        )
    database.migrate()
    with database.reading() as conn:
        assert conn.execute(text("SELECT host FROM connections")).scalar() == "github.com"
    database.close()


def test_sqlite_syncs_each_commit_to_disk(tmp_path: Path) -> None:
    """A delivery answered with 2xx survives a power cut."""
    database = Database(f"sqlite:///{tmp_path / 'synced.db'}")
    with database.reading() as conn:
        assert conn.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert conn.execute(text("PRAGMA synchronous")).scalar() == 2
        assert conn.execute(text("PRAGMA foreign_keys")).scalar() == 1
