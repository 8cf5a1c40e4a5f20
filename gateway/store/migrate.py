"""Bringing the schema up to date, and saying which code works on it.

Schemas expand and contract: see "Changing the schema" in docs/kubernetes.md. A migration adds, and the
version before goes on working; what nobody reads any more is taken away by a later version.
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
# One row, in a table by itself: what code that is older than the schema can still read.
_MARK = "schema_compatibility"


def migrations(connection: Connection) -> Config:
    """Return Alembic's configuration, bound to this connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def present_revision(connection: Connection) -> str | None:
    """Return the schema's revision; None where no version has ever made its tables here."""
    return MigrationContext.configure(connection).get_current_revision()


def migrate_server(connection: Connection, revision: str, *, lock: int) -> None:
    """Migrate PostgreSQL, each migration in a transaction of its own, while others read and write.

    Several processes start at once: the first one migrates, the others find it done, however long the indexes
    of large tables take. They ask again and again, because the building of an index waits for every statement
    that has begun, also for one that waits for a lock.
    """
    key = {"key": lock}
    while not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), key).scalar():
        connection.rollback()
        time.sleep(_POLL_SECONDS)
    try:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(f"SET lock_timeout = {LOCK_MS}"))
        is_behind = _is_behind(connection)
        # Alembic begins its own transactions only where there is none.
        connection.commit()
        if is_behind:
            _upgrade(connection, revision)
            connection.commit()
    finally:
        # Its time-outs are not those of the others; with it ends the lock.
        connection.invalidate()


def migrate_embedded(connection: Connection, revision: str) -> None:
    """Migrate SQLite, where Alembic builds tables anew, also such as others refer to.

    https://www.sqlite.org/lang_altertable.html#otheralter: references are not looked after meanwhile, which
    can be said only outside a transaction, and checked before it ends.
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
            # Fails now and not later where the file can only be read, or the disk is full.
            connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


def _is_behind(connection: Connection) -> bool:
    """Return whether migrations are missing. Raise `StoreUnavailable` for a schema of no use to this code."""
    scripts = ScriptDirectory.from_config(migrations(connection))
    newest = scripts.get_current_head()
    known = {script.revision for script in scripts.walk_revisions()}
    present = present_revision(connection)
    if present is None or present in known:
        return present != newest
    if _usable_since(connection) not in known:
        raise StoreUnavailable(
            f"the database is of a later version of Pushgate: its schema is {present}, and this version knows"
            f" {newest}; start the later version, or restore the back-up from before its upgrade"
        )
    log.warning("the schema is of a later version, and works with this one", schema=present, known=newest)
    return False


def _usable_since(connection: Connection) -> str | None:
    """Return the oldest revision whose code works on the present schema, as the schema itself says."""
    if not inspect(connection).has_table(_MARK):
        return None
    found: str | None = connection.execute(text(f"SELECT usable_since FROM {_MARK}")).scalar()  # noqa: S608
    return found


def _upgrade(connection: Connection, revision: str) -> None:
    """Apply migrations, and mark which code works on what they lead to."""
    command.upgrade(migrations(connection), revision)
    if inspect(connection).has_table(_MARK):
        connection.execute(text(f"DELETE FROM {_MARK}"))  # noqa: S608 - a constant
        mark = text(f"INSERT INTO {_MARK} (usable_since) VALUES (:since)")  # noqa: S608 - a constant
        connection.execute(mark, {"since": USABLE_SINCE})
