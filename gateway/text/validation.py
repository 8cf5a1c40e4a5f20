"""Describe invalid input in a sentence, for every pydantic model that reads input from people."""

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import get_args

from pydantic import BaseModel, ValidationError

_UNKNOWN = "extra_forbidden"
_NO_WORDS: Mapping[str, str] = MappingProxyType({})


def describe(
    error: ValidationError,
    model: type[BaseModel],
    *,
    words: Mapping[str, str] = _NO_WORDS,
    whole: str = "",
) -> str:
    """Return which field is wrong, and why, without its value.

    An unknown key takes precedence, because a misspelt key is also the cause of a missing one.
    `words` replaces pydantic's messages that refer to its own models; `whole` is the name of the whole input.
    """
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    problem = min(problems, key=lambda problem: problem["type"] != _UNKNOWN)
    where = ".".join(str(part) for part in problem["loc"]) or whole
    if problem["type"] == _UNKNOWN:
        *path, key = problem["loc"]
        return f"{where}: there is no such field{suggestion(str(key), _fields(model, path))}"
    what = words.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def suggestion(name: str, known: Collection[str]) -> str:
    """Return the end of a sentence about an unknown name: the most similar known name, or nothing."""
    similar = get_close_matches(name, known, n=1)
    return f"; do you mean {similar[0]}?" if similar else ""


def _fields(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Return the names of the fields at a path in a model."""
    for part in path:
        # In models for input, keys equal field names, and a list contains a single model.
        if isinstance(part, str):
            inner = model_in(model.model_fields[part].annotation) if part in model.model_fields else None
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def model_in(annotation: object) -> type[BaseModel] | None:
    """Return the model that a field's type is, or contains; None if it has none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(model_in, get_args(annotation))), None)
