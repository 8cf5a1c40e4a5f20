"""Migrations expand before they contract: the version before works on the schema of the next one.

The rule is in docs/kubernetes.md, "Changing the schema".
"""

import ast
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from gateway.store import migrations
from gateway.store.database import Database, Lock
from gateway.store.migrations import USABLE_SINCE
from testing.postgres import Postgres
from testing.service import wait_for

VERSIONS = Path(migrations.__file__).parent / "versions"
# An index of these may take minutes.
LARGE = {"deliveries", "ref_updates", "refs", "executions", "execution_bodies", "events", "package_builds"}

_COLUMN = r'ALTER TABLE "?\w+"? ADD COLUMN (?P<column>.*)'
# They change nothing that is stored: see revision 0020.
_STATISTICS = re.compile(
    r"ALTER TABLE leases ALTER COLUMN ((owner|queue_host|queue_project) TYPE TEXT|\w+ SET STATISTICS 0)"
)
_ADDS = re.compile(
    r"(CREATE TABLE|CREATE INDEX|DROP INDEX CONCURRENTLY IF EXISTS|INSERT INTO|UPDATE|SELECT|SET) .*",
    re.DOTALL,
)


def is_an_addition(statement: str) -> bool:
    """Return whether older code still works after a statement."""
    joined = " ".join(statement.split())
    if column := re.fullmatch(_COLUMN, joined):
        is_free = "NOT NULL" not in column["column"] or "DEFAULT" in column["column"]
        return is_free and not re.search("UNIQUE|REFERENCES|CHECK", column["column"])
    is_of_alembic = "alembic_version" in joined
    return is_of_alembic or any(form.fullmatch(joined) for form in (_ADDS, _STATISTICS))


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Record the executed statements."""
    seen: list[str] = []

    def note(_conn: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    yield seen
    event.remove(database.engine, "before_cursor_execute", note)


def test_migrations_only_add(url: str) -> None:
    """From the oldest revision whose code must work on the newest schema."""
    with closing(Database(url)) as database:
        database.migrate("0012")
        with statements(database) as seen:
            database.migrate("0013")
        database.migrate(USABLE_SINCE)
        with statements(database) as later:
            database.migrate()
        seen += later
        others = ("PRAGMA", "BEGIN", "DELETE FROM schema_compatibility")
        changes = [one for one in seen if not one.startswith(others)]
    assert any(one.lstrip().startswith("CREATE TABLE outages") for one in changes)
    assert [one for one in changes if not is_an_addition(one)] == []


@pytest.mark.parametrize(
    ("statement", "adds"),
    [
        ("ALTER TABLE refs ADD COLUMN shown INTEGER", True),
        ("ALTER TABLE sweeps ADD COLUMN agreed INTEGER DEFAULT 0 NOT NULL", True),
        ("CREATE INDEX CONCURRENTLY ix ON refs (shown)", True),
        ("ALTER TABLE sweeps ADD COLUMN agreed INTEGER NOT NULL", False),
        ("ALTER TABLE sweeps ADD COLUMN agreed INTEGER UNIQUE", False),
        ("ALTER TABLE executions DROP COLUMN body", False),
        ("ALTER TABLE executions RENAME COLUMN body TO message", False),
        ("ALTER TABLE executions ALTER COLUMN reason SET NOT NULL", False),
        ("ALTER TABLE executions ADD CONSTRAINT uq UNIQUE (id)", False),
        ("CREATE UNIQUE INDEX uq ON executions (id)", False),
        ("ALTER TABLE leases ALTER COLUMN owner SET STATISTICS 0", True),
        ("ALTER TABLE leases ALTER COLUMN owner TYPE INTEGER", False),
        ("DROP TABLE turns", False),
        ("DELETE FROM turns", False),
    ],
)
def test_what_is_an_addition(statement: str, *, adds: bool) -> None:
    """Older code would not fill a column that must have a value, nor find a removed one."""
    assert is_an_addition(statement) is adds


@pytest.mark.parametrize("path", sorted(VERSIONS.glob("[0-9]*.py")), ids=lambda path: path.stem)
def test_indexes_of_large_tables_are_built_beside_the_traffic(path: Path) -> None:
    """By `build_index`, before anything else; those of a new table are made at once."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]

    def of(name: str) -> list[list[object]]:
        found = [call for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")) == name]
        return [[getattr(one, "value", None) for one in call.args] for call in found]

    new = {arguments[0] for arguments in of("create_table")}
    blocking = {arguments[1] for arguments in of("create_index") if len(arguments) > 1}
    assert blocking & LARGE <= new
    [upgrade] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "upgrade"]
    builds = ["build_index" in ast.unparse(statement) for statement in upgrade.body[1:]]
    assert builds == sorted(builds, reverse=True)


def test_an_index_is_built_while_others_write(postgres: Postgres) -> None:
    """Concurrently, if there are rows; an index left invalid by an interruption is rebuilt."""
    with closing(Database(postgres.database())) as database:
        database.migrate("0007")
        with database.writing() as conn:
            conn.execute(text("ALTER TABLE ref_updates DISABLE TRIGGER ALL"))
            conn.execute(
                text(
                    "INSERT INTO ref_updates"
                    " (connection, delivery, ref, kind, name, action, commits, generation, state)"
                    " VALUES ('c', 'd', 'r', 'branch', 'n', 'create', '[]', 1, 'planned')"
                )
            )
            conn.execute(text("CREATE INDEX ix_ref_updates_peeled ON ref_updates (ref)"))
        with statements(database) as seen:
            database.migrate("0008")
        name = "ix_ref_updates_peeled"
        built = [" ".join(one.split()) for one in seen if name in one]
        assert built == [
            f"DROP INDEX CONCURRENTLY IF EXISTS {name}",
            f"CREATE INDEX CONCURRENTLY {name} ON ref_updates (peeled) WHERE peeled IS NOT NULL",
        ]
        with database.reading() as conn:
            assert conn.execute(text("SHOW lock_timeout")).scalar() == "30s"


def test_a_second_process_waits_without_a_statement(postgres: Postgres) -> None:
    """Otherwise the index build would wait for the waiting statement, and the statement for the build."""
    url = postgres.database()
    with closing(Database(url)) as first, closing(Database(url)) as second, ThreadPoolExecutor(1) as threads:
        with first.engine.connect() as connection:
            key = {"key": Lock.MIGRATION.value}
            assert connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar()
            connection.commit()
            with statements(second) as seen:
                waiting = threads.submit(second.migrate)
                wait_for(lambda: sum("pg_try_advisory_lock" in one for one in seen) > 1, "it asks again")
                in_a_transaction = text(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND wait_event_type = 'Lock'"
                )
                assert connection.execute(in_a_transaction).scalar() == 0
                assert not waiting.done()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), key)
                connection.commit()
                waiting.result(60)
        with second.reading() as conn:
            assert conn.execute(text("SELECT usable_since FROM schema_compatibility")).scalar()
