"""The tables and the migrations that lead to them."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from gateway.store.database import Database
from gateway.store.tables import metadata


def test_the_migrations_lead_to_the_tables(database: Database) -> None:
    """What the code expects is what the migrations make."""
    with database.reading() as transaction:
        context = MigrationContext.configure(transaction, opts={"compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_migrating_twice_changes_nothing(database: Database) -> None:
    """A start finds the schema as the last one left it."""
    database.migrate()
    with database.reading() as transaction:
        assert transaction.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1


def test_sqlite_syncs_each_commit_to_disk(database: Database) -> None:
    """What was answered with a 2xx survives a power cut."""
    with database.reading() as transaction:
        assert transaction.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert transaction.execute(text("PRAGMA synchronous")).scalar() == 2
        assert transaction.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_looking_up_a_batch_reads_no_whole_table(database: Database) -> None:
    """The lookups of the hot path use their indexes."""
    from gateway.store.deliveries import _CLAIMED, _LATEST  # noqa: PLC0415 - the very statements

    for statement in (_CLAIMED, _LATEST):
        with database.reading() as transaction:
            plan = transaction.exec_driver_sql(
                "EXPLAIN QUERY PLAN " + statement.format("('a')", "('b', 'c')")
            )
            told = [row[-1] for row in plan]
        assert all(line.startswith("SEARCH") for line in told), told
