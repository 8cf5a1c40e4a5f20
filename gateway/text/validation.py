"""Describe invalid input in a sentence, for every pydantic model that reads input from people."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from gateway.errors import Fault, Invalid

_UNKNOWN = "extra_forbidden"
_CARRIED = "carried"
_NO_WORDS: Mapping[str, str] = MappingProxyType({})


def describe(
    error: ValidationError,
    model: type[BaseModel],
    *,
    words: Mapping[str, str] = _NO_WORDS,
    whole: str = "",
) -> str:
    """Return the first of the faults, as a sentence."""
    return faults(error, model, words=words, whole=whole)[0].detail


def faults(
    error: ValidationError,
    model: type[BaseModel],
    *,
    words: Mapping[str, str] = _NO_WORDS,
    whole: str = "",
) -> list[Fault]:
    """Return which fields are wrong, and why, without their values.

    Unknown keys come first, because a misspelt key is also the cause of a missing one. `words` replaces
    pydantic's messages that refer to its own models; `whole` is the name of the whole input.
    """
    problems = error.errors(include_url=False, include_input=False)
    problems.sort(key=lambda problem: problem["type"] != _UNKNOWN)
    return [fault for problem in problems for fault in _faults(problem, model, words, whole)]


def carried(error: Invalid) -> PydanticCustomError:
    """Return an error that a validator of a model raises in place of `Invalid`, so that all are reported."""
    return PydanticCustomError(_CARRIED, "{detail}", {"detail": str(error), "faults": error.faults})


def _faults(
    problem: ErrorDetails, model: type[BaseModel], words: Mapping[str, str], whole: str
) -> Iterator[Fault]:
    path = tuple(part for part in problem["loc"] if part != "[key]")
    if problem["type"] == _CARRIED:
        inner: Sequence[Fault] = problem["ctx"]["faults"]
        yield from inner or (Fault(problem["ctx"]["detail"], path),)
        return
    where = ".".join(str(part) for part in path) or whole
    if problem["type"] == _UNKNOWN:
        *outer, key = path
        what = f"there is no such field{suggestion(str(key), _fields(model, outer))}"
    else:
        what = words.get(problem["type"]) or problem["msg"].removeprefix("Value error, ")
    yield Fault(f"{where}: {what}" if where else what, path)


def suggestion(name: str, known: Collection[str]) -> str:
    """Return the end of a sentence about an unknown name: the most similar known name, or nothing."""
    similar = get_close_matches(name, known, n=1, cutoff=0.65)
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
