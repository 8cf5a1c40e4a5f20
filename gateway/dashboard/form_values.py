"""The values of fields with several lines: lists, and names with values."""

import json
from collections.abc import Mapping
from typing import Any

_COLON = ": "


def listed(text: str) -> list[str]:
    """Return the lines of a field that are not blank, without the white space around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]


def parsed_mapping(text: str) -> dict[str, Any]:
    """Return the values of lines `name: value` by their names: JSON where it is JSON, and text otherwise.

    Raises `ValueError` with the number of a line that cannot be read, or whose name was there before.
    """
    found: dict[str, Any] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        name, value = _split(line.strip(), number)
        if name in found:
            raise ValueError(f"Line {number}: {name} is there twice")
        found[name] = _read(value)
    return found


def mapping_lines(values: Mapping[str, Any]) -> str:
    """Return values as `parsed_mapping` reads them."""
    return "\n".join(f"{_name(name)}{_COLON}{_written(value)}" for name, value in values.items())


def _split(line: str, number: int) -> tuple[str, str]:
    try:
        if line.startswith('"'):
            name, end = json.JSONDecoder().raw_decode(line)
            rest = line[end:]
        else:
            name, colon, value = line.partition(":")
            name, rest = name.strip(), colon + value
    except ValueError:
        name, rest = "", ""
    if not name or not rest.startswith(":"):
        raise ValueError(f"Line {number}: write it as name: value")
    return name, rest[1:].strip()


def _read(text: str) -> Any:
    """Return the JSON value of a text, or the text. NaN is none of JSON's."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    return text if found is None or isinstance(found, dict) else found


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _name(name: str) -> str:
    is_plain = name == name.strip() and ":" not in name and name.isprintable() and not name.startswith('"')
    return name if is_plain and name else json.dumps(name, ensure_ascii=False)


def _written(value: Any) -> str:
    """Return a value as text if that is read back as the same value, and as JSON otherwise."""
    if isinstance(value, str) and value == value.strip() and value.isprintable() and _read(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
