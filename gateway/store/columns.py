"""Column types, names and indexes that are the same in SQLite and PostgreSQL."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    TypeDecorator,
    and_,
    text,
)

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
"""How indexes and constraints are named."""

metadata = MetaData(naming_convention=NAMES)


class Instant(TypeDecorator[datetime]):
    """An aware UTC time. SQLite has no time zones, so it stores and returns UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert an aware time to the form of the database."""
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """Convert a stored time to an aware time."""
        if value is None:
            return None
        found: datetime = value
        return found.replace(tzinfo=UTC) if dialect.name == "sqlite" else found.astimezone(UTC)


def partial_index(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    """Return an index of the rows that meet a condition, the same in both databases."""
    condition = text(where)
    return Index(name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition)


def prefix_index(name: str, column: str, *more: str, where: str | None = None) -> Index:
    """Return an index by which the values that begin with a text are found: see `begins_with`."""
    condition = None if where is None else text(where)
    ops = {column: "text_pattern_ops"}
    return Index(name, column, *more, sqlite_where=condition, postgresql_where=condition, postgresql_ops=ops)


def begins_with(
    conn: Connection, column: ColumnElement[str], prefix: str, *, after: ColumnElement[str] | None = None
) -> ColumnElement[bool]:
    """Return a condition that a `prefix_index` answers: not LIKE, for which a plan needs the value.

    With `after`, a text that begins so as well, the column must follow it. Of two lower limits, SQLite would
    use either in the index, and read all that is between them.
    """
    end = prefix + "\U0010ffff"
    if conn.dialect.name == "sqlite":
        return and_(column >= prefix if after is None else column > after, column < end)
    begin = column.op("~>=~")(prefix) if after is None else column.op("~>~")(after)
    return and_(begin, column.op("~<~")(end))


# SQLite assigns numbers to rows only if the key is exactly INTEGER.
Sequence = BigInteger().with_variant(Integer(), "sqlite")
