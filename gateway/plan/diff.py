"""What differs between two requests for the same push: of what is to be executed, and for whom.

What was pushed, and when and by whom, is the same for both; and a package is not there before a request is.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.messages.execution_request import ExecutionRequest

Differences = Mapping[str, tuple[Any, Any]]
"""Old and new value of each field that differs, by its place in the message, such as execution.image."""

_DEFINITION = "execution.definition"


def differences(old: ExecutionRequest, new: ExecutionRequest) -> Differences:
    """Compare two requests of one trigger for one ref update.

    The definition, which repeats the rest as valohai.yaml writes it, is told where nothing else tells of it.
    """
    found = dict(_differing("", _asked(old), _asked(new)))
    told = {place: values for place, values in found.items() if not place.startswith(_DEFINITION)}
    return told if any(place.startswith("execution.") for place in told) else found


def _asked(request: ExecutionRequest) -> dict[str, Any]:
    return {
        "project": request.project,
        "repository": {"url": request.repository.url},
        "execution": request.execution.model_dump(mode="json"),
    }


def _differing(place: str, old: Any, new: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Go into objects, and into lists of one length; the rest is compared whole. What isn't there is None."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        old, new = (dict(enumerate(one)) for one in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differing(f"{place}.{name}" if place else name, old.get(name), new.get(name))
    elif old != new or isinstance(old, bool) != isinstance(new, bool):
        yield place, (old, new)
