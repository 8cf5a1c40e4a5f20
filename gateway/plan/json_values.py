"""Helpers for converting steps, pipelines and tasks: plain JSON values, sizes, and checks of names."""

import json
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from gateway.errors import PlanError

_BYTES_OF_A_VALUE = 16
_MAX_NAMES = 20
_MAX_NAME_LENGTH = 100


def plain(value: Any, owner: str) -> Any:
    """Return the value as plain JSON. A date, as which YAML 1.1 reads 2026-01-01, becomes text again.

    Raises `PlanError` for values that JSON does not have: an infinite number, bytes, a key that is not text.
    """
    try:
        return json.loads(json.dumps(value, default=_text, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise PlanError(f"{owner} contains a value that JSON does not have: {error}") from error


def weight(value: Any) -> int:
    """Return the bytes that a value takes as JSON, plus 16 for each value in it.

    The 16 bytes stand for the time that copying each value takes, however short it is. A shared value counts
    each time it occurs, because it is written each time. The value is never serialized as a whole.
    """
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        total += _BYTES_OF_A_VALUE
        if isinstance(item, Mapping):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        else:
            text = json.dumps(item, ensure_ascii=False, default=str)
            total += len(text.encode("utf-8", "surrogatepass"))
    return total


def listed(names: Iterable[str]) -> str:
    """Return the first names and the number of the others, because a valohai.yaml may have thousands."""
    known = list(names)
    shown = [shortened(name, _MAX_NAME_LENGTH) for name in known[:_MAX_NAMES]]
    more = [f"and {len(known) - _MAX_NAMES} more"] if len(known) > _MAX_NAMES else []
    return ", ".join([*shown, *more]) or "none"


def shortened(text: str, most: int) -> str:
    """Return the text, cut to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def refuse_unknown(what: str, *, given: Mapping[str, Any], known: Mapping[str, Any], owner: str) -> None:
    """Raise `PlanError` for the first unknown name, and list the known names."""
    for name in given:
        if name not in known:
            raise PlanError(f"{owner} has no {what} {name}; it has: {listed(known)}")


def _text(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a value of the type {type(value).__name__}")
