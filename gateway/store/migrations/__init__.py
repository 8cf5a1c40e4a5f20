"""One module for each change of the schema, in order. See "Changing the schema" in docs/kubernetes.md.

After `USABLE_SINCE` migrations only add: tables, columns that may be empty or have a default, indexes. So the
code of that revision, and of each later one, works on the newest schema, and may be started on it again.
"""

from typing import Any

from alembic import op
from sqlalchemy import text

USABLE_SINCE = "0014"
"""The oldest revision whose code works on the newest schema: raise it where a migration takes away."""

LOCK_MS = 30_000
"""How long a change waits for a table that others are using; they wait behind it."""


def build_index(
    name: str, table: str, columns: list[str], *, where: str | None = None, prefixes_of: str | None = None
) -> None:
    """Build an index of a table that may be large; on PostgreSQL others go on writing meanwhile.

    It also finds the values of the column `prefixes_of` that begin with a text, whatever the collation.
    Call it before whatever else a migration does: where it fails, what came before is not taken back.
    https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY
    """
    how: dict[str, Any] = {"postgresql_where": None if where is None else text(where)}
    if prefixes_of is not None:
        how["postgresql_ops"] = {prefixes_of: "text_pattern_ops"}
    is_empty = op.get_bind().execute(text(f"SELECT 1 FROM {table} LIMIT 1")).first() is None  # noqa: S608
    if is_empty or op.get_context().dialect.name != "postgresql":
        op.create_index(name, table, columns, sqlite_where=how["postgresql_where"], **how)
        return
    with op.get_context().autocommit_block():
        # It waits for every transaction that has begun, be it long.
        op.execute("SET lock_timeout = 0")
        # One whose building was interrupted is there, and of no use.
        op.drop_index(name, table, if_exists=True, postgresql_concurrently=True)
        op.create_index(name, table, columns, postgresql_concurrently=True, **how)
        op.execute(f"SET lock_timeout = {LOCK_MS}")
