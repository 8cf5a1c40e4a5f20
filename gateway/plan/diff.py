"""Compare two requests for the same push: what they execute, and for which project.

The push, its time and its pusher are equal in both requests. Packages are not compared either, because they
are built only after the request is planned.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.messages.execution_request import ExecutionRequest

Differences = Mapping[str, tuple[Any, Any]]
"""The old and new value of each field that differs, by its path in the message, such as execution.image."""

_DEFINITION = re.compile(r"execution(\.nodes\.\d+\.execution)?(\.step)?\.(endpoint_)?definitions?\b")


def differences(old: ExecutionRequest, new: ExecutionRequest) -> Differences:
    """Compare two requests of one trigger for one ref update.

    The definitions repeat the other fields as valohai.yaml writes them. They are therefore included only if
    no other field of the execution differs.
    """
    found = dict(_differing("", _compared(old), _compared(new)))
    rest = {place: values for place, values in found.items() if not _DEFINITION.match(place)}
    return rest if any(place.startswith("execution.") for place in rest) else found


def _compared(request: ExecutionRequest) -> dict[str, Any]:
    return {
        "project": request.project,
        "repository": {"url": request.repository.url},
        "execution": request.execution.model_dump(mode="json"),
    }


def _differing(place: str, old: Any, new: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Descend into objects and lists of equal length; compare other values whole. Missing values are None."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = (dict(enumerate(items)) for items in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differing(f"{place}.{name}" if place else name, old.get(name), new.get(name))
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield place, (old, new)
