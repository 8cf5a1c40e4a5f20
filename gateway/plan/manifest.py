"""A commit's valohai.yaml: read with the platform's own parser, which is kept from what it can't stand.

The file is anybody's who can push. So its size, its depth and what its aliases unfold to are bounded before
the parser sees it, and every way in which it can fail becomes a `PlanError` that says where.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import valohai_yaml
import yaml
from valohai_yaml.excs import ValidationErrors
from valohai_yaml.objs import Step

from gateway.errors import PlanError

LARGEST = 256 * 1024
"""Bytes. The platform's parser takes 2 ms for each step."""

_MOST_NODES = 50_000
_DEEPEST = 40
# valohai-yaml formats `pass-as` with str.format: anything but these would be a way into its objects.
_PASS_AS_FIELDS = ("{name}", "{value}", "{v}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a valohai.yaml defines that can be executed, by name."""

    path: str
    steps: Mapping[str, Step]


def read_manifest(text: bytes, *, path: str) -> Manifest:
    """Read a valohai.yaml. Raises `PlanError` with line and column, where there are some."""
    if len(text) > LARGEST:
        raise PlanError(f"{path} has {len(text)} bytes; at most {LARGEST} are read")
    try:
        _check_bounds(text, path)
        document = yaml.compose(text, Loader=yaml.CSafeLoader)
        config = valohai_yaml.parse(text, validate=True)
    except PlanError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise PlanError(f"{path}{_at(mark)}: {error.problem or error.context}") from error
    except ValidationErrors as error:
        raise PlanError(_first_violation(error, document, path)) from error
    except Exception as error:
        # The parser raises whatever its own code stumbles over: IndexError, TypeError, RecursionError, ...
        raise PlanError(f"{path} is not a valid valohai.yaml: {_one_line(error)}") from error
    for step in config.steps.values():
        _check_templates(step, path)
    return Manifest(path=path, steps=dict(config.steps))


def _check_bounds(text: bytes, path: str) -> None:
    """Walk over the events, which needs no recursion, and refuse what would unfold without end."""
    unfolded: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        anchor = getattr(event, "anchor", None)
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, 1))
            if len(open_nodes) > _DEEPEST:
                raise PlanError(f"{path}{_at(event.start_mark)}: nested more than {_DEEPEST} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in unfolded:
                raise PlanError(
                    f"{path}{_at(event.start_mark)}: the alias *{anchor} refers to nothing complete"
                )
            size = unfolded[anchor]
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            unfolded[anchor] = size
        outer, total = open_nodes[-1]
        open_nodes[-1] = (outer, total + size)
        if total + size > _MOST_NODES:
            raise PlanError(f"{path}: its aliases unfold to more than {_MOST_NODES} values")


def _first_violation(error: ValidationErrors, document: yaml.Node | None, path: str) -> str:
    """Return the first violation of the schema, where it stands and how many more there are."""
    violations = list(error)
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    if isinstance(first, str):
        return f"{path}: {first}{more}"
    place = "/".join(str(part) for part in first.absolute_path)
    mark = _mark(document, first.absolute_path)
    return f"{path}{_at(mark)}: {place + ': ' if place else ''}{_one_line(first.message)}{more}"


def _mark(node: yaml.Node | None, path: Iterable[str | int]) -> yaml.Mark | None:
    """Return where in the text the value of a path begins."""
    for part in path:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == part), node)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
    return node.start_mark if node is not None else None


def _check_templates(step: Step, path: str) -> None:
    for parameter in step.parameters.values():
        for template in (parameter.pass_as, parameter.pass_true_as, parameter.pass_false_as):
            rest = str(template or "")
            for field in _PASS_AS_FIELDS:
                rest = rest.replace(field, "")
            if "{" in rest or "}" in rest:
                raise PlanError(
                    f"{path}: step {step.name}, parameter {parameter.name}: a pass-as may hold"
                    f" {', '.join(_PASS_AS_FIELDS)} and no other braces"
                )


def _at(mark: Any) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"  # noqa: PLR2004 - as much as anybody reads
