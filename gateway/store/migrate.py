"""Migrate the schema, and record which versions of the code are compatible with it.

Schemas expand and contract: see "Changing the schema" in docs/kubernetes.md. A migration only adds, so the
previous version continues to work; a later version removes what no version reads any more.
"""

import time
from pathlib import Path
from typing import Any

import structlog
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from gateway.errors import StoreUnavailable
from gateway.store.migrations import LOCK_MS, USABLE_SINCE

log = structlog.get_logger()

_POLL_SECONDS = 0.2
# A table with one row, which code older than the schema can still read.
_MARK = "schema_compatibility"


def migrations(connection: Connection) -> Config:
    """Return Alembic's configuration, bound to this connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def present_revision(connection: Connection) -> str | None:
    """Return the schema's revision; None if the database has no tables of any version."""
    return MigrationContext.configure(connection).get_current_revision()


def migrate_server(connection: Connection, revision: str, *, lock: int) -> None:
    """Migrate PostgreSQL, each migration in a transaction of its own, while others read and write.

    Several processes may start at once: the first migrates, and the others wait for it, however long the
    indexes of large tables take. They poll for the lock, because the building of an index waits for every
    running statement, including one that waits for a lock.
    """
    key = {"key": lock}
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar():
        connection.rollback()
        time.sleep(_POLL_SECONDS)
    try:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(f"SET lock_timeout = {LOCK_MS}"))
        is_behind = _is_behind(connection)
        # Alembic begins its own transactions only outside of one.
        connection.commit()
        if is_behind:
            _upgrade(connection, revision)
            connection.commit()
    finally:
        # This connection has other time-outs than the pool's; closing it releases the lock.
        connection.invalidate()


def migrate_embedded(connection: Connection, revision: str) -> None:
    """Migrate SQLite, where Alembic rebuilds tables, even tables that others reference.

    https://www.sqlite.org/lang_altertable.html#otheralter: foreign keys are off meanwhile, which can be set
    only outside a transaction, and they are checked before it ends.
    """
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        with connection.begin():
            if _is_behind(connection):
                _upgrade(connection, revision)
                broken = connection.execute(text("PRAGMA foreign_key_check")).first()
                if broken is not None:
                    raise StoreUnavailable(
                        f"the database cannot be brought up to date: a row of {broken[0]} refers to one of"
                        f" {broken[2]} that is not there; nothing was changed"
                    )
            # Fails now instead of later if the file is read-only or the disk is full.
            connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


def _is_behind(connection: Connection) -> bool:
    """Return whether migrations are missing. Raise `StoreUnavailable` for an incompatible schema."""
    scripts = ScriptDirectory.from_config(migrations(connection))
    newest = scripts.get_current_head()
    known = {script.revision for script in scripts.walk_revisions()}
    present = present_revision(connection)
    if present is None or present in known:
        return present != newest
    if _usable_since(connection) not in known:
        raise StoreUnavailable(
            f"the database is of a later version of Pushgate: its schema is {present}, and this version's is"
            f" {newest}; start the later version, or restore the back-up from before its upgrade"
        )
    log.warning("the schema is of a later version, and works with this one", schema=present, known=newest)
    return False


def _usable_since(connection: Connection) -> str | None:
    """Return the oldest revision whose code works on the present schema, as recorded in the schema."""
    if not inspect(connection).has_table(_MARK):
        return None
    found: str | None = connection.execute(text(f"SELECT usable_since FROM {_MARK}")).scalar()  # noqa: S608
    return found


def _upgrade(connection: Connection, revision: str) -> None:
    """Apply migrations, and record which code works on the new schema."""
    command.upgrade(migrations(connection), revision)
    if inspect(connection).has_table(_MARK):
        connection.execute(text(f"DELETE FROM {_MARK}"))  # noqa: S608 - a constant
        mark = text(f"INSERT INTO {_MARK} (usable_since) VALUES (:since)")  # noqa: S608 - a constant
        connection.execute(mark, {"since": USABLE_SINCE})
