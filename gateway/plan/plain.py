"""What the step's and the pipeline's conversion share: plain JSON values, and names that have to be known."""

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

from gateway.errors import PlanError


def plain(value: Any, owner: str) -> Any:
    """Return the value as JSON has it; a date, which YAML 1.1 sees in 2026-01-01, becomes text again.

    Raises `PlanError` for what JSON can't hold: an infinite number, bytes, a key that is no text.
    """
    try:
        return json.loads(json.dumps(value, default=_text, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise PlanError(f"{owner} holds a value that JSON can't hold: {error}") from error


def refuse_unknown(what: str, *, given: Mapping[str, Any], known: Mapping[str, Any], owner: str) -> None:
    """Raise `PlanError` for the first given name that isn't known, and say which are."""
    for name in given:
        if name not in known:
            raise PlanError(f"{owner} has no {what} {name}; it has: {', '.join(known) or 'none'}")


def _text(value: Any) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a value of the type {type(value).__name__}")
