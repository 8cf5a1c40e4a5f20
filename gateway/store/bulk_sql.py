"""Statements of the hot path, compiled once: SQL text and plain rows, as the driver takes them.

SQLAlchemy prepares each statement again, which takes 0.1 ms and more; for a batch of a few deliveries, that
was most of the cost. The SQL is still compiled from the tables, for either database.

SQLite takes a placeholder for each value. PostgreSQL takes an array for each column, so that the text is the
same for any number of rows and stays prepared: a third of the CPU of single placeholders, as little as COPY.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy
from pydantic_core import to_json
from sqlalchemy import JSON, Column, ColumnElement, Dialect, Table, Text, any_, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite

# SQLite takes at most 32,766 bound values in a statement.
MAX_VALUES = 30_000


def insert_rows(conn: sqlalchemy.Connection, table: Table, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows whose values are in the order of the table's columns, without an autoincrement key.

    Columns at the end of the table may be omitted, and get their defaults.
    """
    _run(conn, _compiled(table, (), conn.dialect.name, len(rows[0])), rows)


def upsert_rows(
    conn: sqlalchemy.Connection, table: Table, key: tuple[str, ...], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert rows, or update the rows with the same key."""
    _run(conn, _compiled(table, key, conn.dialect.name, len(rows[0])), rows)


def select_pairs(
    conn: sqlalchemy.Connection, sql: str, pairs: Collection[tuple[str, str]], *, most: int = 1
) -> Sequence[Any]:
    """Select by pairs: the SQL compares with `first` and `second`, and has `{wanted}` before its own table.

    Each pair is an index lookup. At most `most` rows for each pair are returned; SQLite counts them together.
    SQLite keeps the order of a CROSS JOIN; for `(a, b) IN (VALUES ...)` it would read the whole table.
    PostgreSQL would read all rows of each connection for two lists, and for a join until its statistics are
    up to date.
    """
    if conn.dialect.name == "sqlite":
        wanted = "WITH wanted (first, second) AS (VALUES " + ", ".join(["(?, ?)"] * len(pairs)) + ") "
        statement = f"{wanted}{sql.format(wanted='wanted CROSS JOIN ')} LIMIT {most * len(pairs)}"
        return conn.exec_driver_sql(statement, tuple(value for pair in pairs for value in pair)).all()
    firsts, seconds = zip(*pairs, strict=True)
    wanted = "unnest(%b::text[], %b::text[]) AS wanted (first, second)"
    found = sql.format(wanted="")
    statement = f"SELECT found.* FROM {wanted} CROSS JOIN LATERAL ({found} LIMIT {most}) AS found"  # noqa: S608 - ours
    return conn.exec_driver_sql(statement, (list(firsts), list(seconds))).all()


def among(conn: sqlalchemy.Connection, column: Column[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """Return the condition that a column, of text or numbers, has one of many values.

    The database takes them as one value: an array, or JSON for SQLite. PostgreSQL would parse and plan a list
    of hundreds each time, and SQLAlchemy write one, which takes longer than to find the rows.
    """
    if conn.dialect.name == "sqlite":
        given = bindparam(None, to_json(list(values)).decode(), type_=Text)
        return column.in_(select(func.json_each(given).table_valued("value").c.value))
    return column == any_(bindparam(None, list(values), type_=postgresql.ARRAY(column.type)))


@dataclass(frozen=True, slots=True)
class _Statement:
    """An insert statement, split around the values, and the processors of values that the driver needs.

    `values` stands for one row on SQLite, for all rows on PostgreSQL.
    """

    head: str
    values: str
    tail: str
    width: int
    processors: Sequence[tuple[int, Callable[[Any], Any]]]


def _run(conn: sqlalchemy.Connection, statement: _Statement, rows: Sequence[Sequence[Any]]) -> None:
    """Insert many rows with each statement, because each statement gives up the interpreter once."""
    if conn.dialect.name != "sqlite":
        _run_columns(conn, statement, rows)
        return
    at_once = MAX_VALUES // statement.width
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        values: list[Any] = []
        for row in part:
            at = len(values)
            values += row
            for index, processor in statement.processors:
                if values[at + index] is not None:
                    values[at + index] = processor(values[at + index])
        sql = statement.head + ", ".join([statement.values] * len(part)) + statement.tail
        conn.exec_driver_sql(sql, tuple(values))


def _run_columns(conn: sqlalchemy.Connection, statement: _Statement, rows: Sequence[Sequence[Any]]) -> None:
    """Insert all rows, with an array for each column."""
    columns = list(map(list, zip(*rows, strict=True)))
    for index, processor in statement.processors:
        columns[index] = [None if value is None else processor(value) for value in columns[index]]
    conn.exec_driver_sql(statement.head + statement.values + statement.tail, tuple(columns))


@cache
def _compiled(table: Table, key: tuple[str, ...], dialect_name: str, width: int) -> _Statement:
    is_sqlite = dialect_name == "sqlite"
    module: Any = sqlite if is_sqlite else postgresql
    paramstyle = "qmark" if is_sqlite else "format"
    dialect: Dialect = module.dialect(paramstyle=paramstyle)
    columns = [column for column in table.columns if column is not table.autoincrement_column][:width]
    # Inline: the generated numbers of the rows are not needed.
    statement: Any = module.insert(table).inline()
    if key:
        changing = [column.name for column in columns if column.name not in key]
        changed = {name: statement.excluded[name] for name in changing}
        statement = statement.on_conflict_do_update(index_elements=key, set_=changed)
    sql = str(statement.compile(dialect=dialect, column_keys=[column.name for column in columns]))
    head, _, rest = sql.partition(" VALUES ")
    row, bracket, tail = rest.partition(")")
    values = row + bracket if is_sqlite else f"SELECT * FROM unnest({', '.join(map(_array, columns))})"  # noqa: S608 - ours
    processors = []
    for index, column in enumerate(columns):
        is_json = isinstance(column.type, JSON)
        processor = _as_json if is_json else column.type.dialect_impl(dialect).bind_processor(dialect)
        if processor is not None:
            processors.append((index, processor))
    return _Statement(head + (" VALUES " if is_sqlite else " "), values, tail, len(columns), processors)


def _array(column: Column[Any]) -> str:
    """Return the placeholder of a column's values. The binary form takes half the time of the text form."""
    if isinstance(column.type, JSON):
        return "%b::text[]::json[]"
    return f"%b::{column.type.compile(postgresql.dialect())}[]"  # type: ignore[no-untyped-call]


def _as_json(value: Any) -> str:
    """Return a value as JSON text, in a fifth of the time of the standard library."""
    return to_json(value).decode()
