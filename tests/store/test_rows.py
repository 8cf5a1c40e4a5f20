"""Values that are built from rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
import sqlalchemy
from sqlalchemy import create_engine, literal, select

from gateway.store.rows import from_row


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A value with a default, which must not hide a column that the query omits."""

    name: str
    size: int = 1


@pytest.fixture
def conn() -> Iterator[sqlalchemy.Connection]:
    """Return a connection to an empty database."""
    with create_engine("sqlite://").connect() as conn:
        yield conn


def test_fields_have_the_columns_of_their_names_or_the_given_values(conn: sqlalchemy.Connection) -> None:
    """Other columns are ignored, in any order."""
    columns = literal(2).label("size"), literal("x").label("other"), literal("digits").label("name")
    row = conn.execute(select(*columns)).one()
    assert from_row(Named, row) == Named(name="digits", size=2)
    assert from_row(Named, row, size=row.size + 1) == Named(name="digits", size=3)


def test_a_field_without_a_column_or_a_value_without_a_field_is_an_error(conn: sqlalchemy.Connection) -> None:
    """Neither a forgotten column nor a misspelt name goes unnoticed."""
    row = conn.execute(select(literal("digits").label("name"))).one()
    with pytest.raises(KeyError):
        from_row(Named, row)
    with pytest.raises(TypeError):
        from_row(Named, row, size=1, made_at=datetime.now(UTC))
