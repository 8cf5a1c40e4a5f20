"""Find fields that a JSON object has more than once: of these, parsers keep one, and each another."""

import json
from collections.abc import Iterator
from typing import Any

from gateway.errors import Fault


class _Object(dict[str, Any]):
    """An object with the names that it has more than once."""

    repeated: tuple[str, ...] = ()


def repeated_fields(content: bytes) -> list[Fault]:
    """Return a fault for each repeated field of a JSON text; none if it is not valid JSON."""
    found: list[_Object] = []

    def read(pairs: list[tuple[str, Any]]) -> _Object:
        made = _Object(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            made.repeated = tuple(name for name in made if names.count(name) > 1)
            found.append(made)
        return made

    try:
        whole = json.loads(content or b"{}", object_pairs_hook=read)
    except (ValueError, RecursionError):
        return []
    return list(_faults(whole, ())) if found else []


def _faults(value: Any, path: tuple[str | int, ...]) -> Iterator[Fault]:
    if isinstance(value, _Object):
        for name in value.repeated:
            where = ".".join(map(str, (*path, name)))
            yield Fault(f"{where}: the field is given more than once", (*path, name))
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _faults(inner, (*path, key))
