"""Statements of the hot path, compiled once: SQL text and plain rows, as the driver takes them.

SQLAlchemy prepares each statement anew, at 0.1 ms and more; with a batch of a few deliveries that was most
of what accepting them cost. The SQL still comes from the tables, for either database.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection as Transaction
from sqlalchemy import Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite

_Processors = list[tuple[int, Callable[[Any], Any]]]


def insert_rows(transaction: Transaction, table: Table, rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows whose values stand in the order of the table's columns, less a key that numbers itself."""
    _run(transaction, rows, *_compiled(table, (), transaction.dialect.name))


def upsert_rows(
    transaction: Transaction, table: Table, key: tuple[str, ...], rows: Sequence[Sequence[Any]]
) -> None:
    """Insert rows, or change those that are there by the same key."""
    _run(transaction, rows, *_compiled(table, key, transaction.dialect.name))


def select_in(transaction: Transaction, sql: str, *lists: Iterable[Any]) -> Sequence[Any]:
    """Select by lists of values: each `{}` of the SQL stands for one list."""
    mark = "?" if transaction.dialect.name == "sqlite" else "%s"
    values = [list(one) for one in lists]
    told = sql.format(*(f"({', '.join([mark] * len(one))})" for one in values))
    return transaction.exec_driver_sql(told, tuple(value for one in values for value in one)).all()


def _run(transaction: Transaction, rows: Sequence[Sequence[Any]], sql: str, processors: _Processors) -> None:
    prepared = [list(row) for row in rows]
    for row in prepared:
        for index, processor in processors:
            row[index] = processor(row[index])
    transaction.exec_driver_sql(sql, [tuple(row) for row in prepared])


@cache
def _compiled(table: Table, key: tuple[str, ...], dialect_name: str) -> tuple[str, _Processors]:
    """Return the statement, and how the values of some columns are brought into the driver's form."""
    is_sqlite = dialect_name == "sqlite"
    module: Any = sqlite if is_sqlite else postgresql
    dialect: Dialect = module.dialect(paramstyle="qmark" if is_sqlite else "format")
    columns = [column for column in table.columns if column is not table.autoincrement_column]
    statement: Any = module.insert(table)
    if key:
        changing = [column.name for column in columns if column.name not in key]
        changed = {name: statement.excluded[name] for name in changing}
        statement = statement.on_conflict_do_update(index_elements=key, set_=changed)
    sql = str(statement.compile(dialect=dialect, column_keys=[column.name for column in columns]))
    processors: _Processors = []
    for index, column in enumerate(columns):
        processor = column.type.dialect_impl(dialect).bind_processor(dialect)
        if processor is not None:
            processors.append((index, processor))
    return sql, processors
