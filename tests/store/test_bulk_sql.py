"""Statements of the hot path act like SQLAlchemy's own, for any number of rows, on either database."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import JSON, Column, Integer, LargeBinary, MetaData, Table, Text, select, text

from gateway.store import bulk_sql
from gateway.store.columns import Instant, Sequence
from gateway.store.database import Database

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
METADATA = MetaData()
NUMBERED = Table(
    "numbered",
    METADATA,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("name", Text),
    Column("at", Instant),
    Column("value", JSON),
    Column("body", LargeBinary),
    Column("tries", Integer, nullable=False, server_default=text("7")),
)
KEYED = Table(
    "keyed",
    METADATA,
    Column("first", Text, primary_key=True),
    Column("second", Text, primary_key=True),
    Column("value", JSON),
    Column("at", Instant),
)


@pytest.fixture
def tables(url: str) -> Any:
    """Return a database with these tables."""
    database = Database(url)
    with database.writing() as conn:
        METADATA.create_all(conn)
    yield database
    database.close()


def rows_of(database: Database, table: Table) -> list[tuple[Any, ...]]:
    """Return all rows of a table in the order of its key."""
    with database.reading() as conn:
        query = select(table).order_by(*table.primary_key)
        return [tuple(row) for row in conn.execute(query)]


def row(number: int) -> list[Any]:
    """Return a row of NUMBERED without its key; some values are missing."""
    even = number % 2 == 0
    return [
        f"name {number}",
        NOW.replace(second=number) if even else None,
        {"number": number, "text": 'ü"'} if even else None,
        bytes([number]) if even else None,
    ]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9, 12])
def test_all_rows_are_inserted_in_their_order(
    tables: Database, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Once each, also if a statement takes fewer; keys and omitted values get their defaults."""
    # Four rows of four values in a statement.
    monkeypatch.setattr(bulk_sql, "MAX_VALUES", 19)
    with tables.writing() as conn:
        bulk_sql.insert_rows(conn, NUMBERED, [row(number) for number in range(count)])
    expected = [(number + 1, *row(number), 7) for number in range(count)]
    assert rows_of(tables, NUMBERED) == expected


def test_a_value_at_the_end_of_the_table_may_be_given(tables: Database) -> None:
    """Instead of its default."""
    with tables.writing() as conn:
        bulk_sql.insert_rows(conn, NUMBERED, [[*row(1), 1], [*row(2), 2]])
    assert rows_of(tables, NUMBERED) == [(1, *row(1), 1), (2, *row(2), 2)]


def test_rows_that_are_there_by_their_key_are_changed(tables: Database) -> None:
    """The whole key counts, and other rows stay unchanged."""
    key = ("first", "second")
    with tables.writing() as conn:
        bulk_sql.upsert_rows(
            conn, KEYED, key, [["a", "a", [1], NOW], ["a", "b", [2], None], ["b", "a", None, NOW]]
        )
        bulk_sql.upsert_rows(conn, KEYED, key, [["a", "b", [3], NOW], ["b", "b", [4], None]])
    assert rows_of(tables, KEYED) == [
        ("a", "a", [1], NOW),
        ("a", "b", [3], NOW),
        ("b", "a", None, NOW),
        ("b", "b", [4], None),
    ]


def test_a_key_that_is_there_is_no_success_of_an_insert(tables: Database) -> None:
    """Only `upsert_rows` changes existing rows."""
    with tables.writing() as conn:
        bulk_sql.insert_rows(conn, KEYED, [["a", "a", [1], NOW]])
    with pytest.raises(Exception, match=r"(?i)unique"), tables.writing() as conn:
        bulk_sql.insert_rows(conn, KEYED, [["a", "a", [2], NOW]])


def test_pairs_are_found_each_by_both_of_its_values(tables: Database) -> None:
    """One pair or many, and no others."""
    given = [[first, second, None, None] for first in "abc" for second in "abc"]
    sql = (
        "SELECT keyed.first, keyed.second FROM {wanted}keyed"
        " WHERE keyed.first = wanted.first AND keyed.second = wanted.second"
    )
    with tables.writing() as conn:
        bulk_sql.insert_rows(conn, KEYED, given)
        for pairs in ([("a", "b")], [("a", "c"), ("c", "a"), ("b", "b")], [("a", "x"), ("c", "c")]):
            found = {tuple(one) for one in bulk_sql.select_pairs(conn, sql, pairs)}
            assert found == {pair for pair in pairs if "x" not in pair}


def test_several_rows_of_a_pair_are_found_up_to_a_limit(tables: Database) -> None:
    """The limit is for each pair; the rows of the others do not count."""
    sql = (
        "SELECT keyed.first, keyed.second FROM {wanted}keyed"
        " WHERE keyed.first = wanted.first AND keyed.second > wanted.second"
    )
    with tables.writing() as conn:
        bulk_sql.insert_rows(conn, KEYED, [[one, other, None, None] for one in "ab" for other in "0123"])
        for pairs in ([("a", "1")], [("a", "1"), ("b", "1")]):
            assert len(bulk_sql.select_pairs(conn, sql, pairs, most=5)) == 2 * len(pairs)
        assert len(bulk_sql.select_pairs(conn, sql, [("a", "0")], most=2)) == 2
