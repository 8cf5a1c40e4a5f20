"""The one way from a row to a value."""

from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Row

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def from_row(kind: type[T], row: Row[*tuple[Any, ...]], **given: Any) -> T:
    """Return a dataclass whose fields have the values of the row's columns with the same names.

    `given` are the fields that differ from their column, or have none. Raise `KeyError` for another field
    without a column, even if it has a default: the query has omitted it.
    """
    # A third of the time of looking each one up in `_mapping`, which matters for lists.
    columns = dict(zip(row._fields, row, strict=True))
    return kind(**{name: columns[name] for name in _field_names(kind) if name not in given}, **given)


@cache
def _field_names(kind: "type[DataclassInstance]") -> tuple[str, ...]:
    # Cached for the hot paths.
    return tuple(field.name for field in fields(kind))
