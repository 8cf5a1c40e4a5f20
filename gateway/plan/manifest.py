"""Read a commit's valohai.yaml with the platform's own parser, within limits.

Anybody who can push controls the file. Its size, its depth and the expansion of its aliases are therefore
limited before the parser runs, and every failure becomes a `PlanError` with the position.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import valohai_yaml
import yaml
from valohai_yaml.objs import Config, Pipeline, Step, Task
from valohai_yaml.validation import get_validator

# Fails at the start where PyYAML was built without libyaml, and not at each push.
from yaml import CSafeLoader

from gateway.errors import PlanError

MAX_MANIFEST_BYTES = 256 * 1024

# The platform's validator takes a millisecond for each item, however small.
_MAX_ITEMS = 1000
_MAX_DEPTH = 40
# The file's size after its aliases are expanded: the characters of each value, and 16 more per value. This
# bounds the parser's work (1.5 s), but not the size of requests, because a pipeline copies its steps.
_MAX_EXPANDED_LENGTH = 4 * MAX_MANIFEST_BYTES
_LENGTH_PER_VALUE = 16
# Python parses a number in time quadratic in its digits, also for the `1:59:59…` of YAML 1.1.
_LONG_NUMBER = re.compile(r"[-+]?[0-9.][0-9a-fA-Fx_.:]{99,}")
# As `_at` writes it.
_AT = re.compile(r", line (\d+), column \d")
_MAX_VIOLATIONS = 20
_MAX_MESSAGE_LENGTH = 300
# valohai-yaml formats `pass-as` with str.format: any other field could read attributes of its objects.
_PASS_AS_FIELDS = ("{name}", "{value}", "{v}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The steps, pipelines and tasks of a valohai.yaml by name; `config` is the parser's own object.

    It is shared by all plans that use the same file: change nothing in it. `length` is the file's length
    after its aliases are expanded.
    """

    path: str
    steps: Mapping[str, Step]
    pipelines: Mapping[str, Pipeline]
    tasks: Mapping[str, Task]
    config: Config
    length: int


class ManifestCache:
    """The manifests used last, by their text and path; for several threads.

    Few commits change the file, and validating it takes milliseconds, or half a second if it is large. The
    parsed objects take about 20 times as much memory as the file with its aliases expanded, so that length
    is what is limited.
    """

    def __init__(self, *, length: int = 2 * 1024 * 1024, entries: int = 1000) -> None:
        """Cache at most so much."""
        self._lock = threading.Lock()
        self._left = length
        self._entries = entries
        self._found: OrderedDict[tuple[bytes, str], Manifest] = OrderedDict()

    def read(self, text: bytes, *, path: str) -> Manifest:
        """Return what `read_manifest` returns, which may raise `PlanError`."""
        key = (text, path)
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        manifest = read_manifest(text, path=path)
        with self._lock:
            if key not in self._found:
                self._found[key] = manifest
                self._left -= manifest.length
            while self._left < 0 or len(self._found) > self._entries:
                self._left += self._found.popitem(last=False)[1].length
        return manifest


def read_manifest(text: bytes, *, path: str) -> Manifest:
    """Read a valohai.yaml. Raises `PlanError`, with line and column if known.

    Ignore top-level items of unknown kinds, as the platform does.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise PlanError(f"{path} has {len(text)} bytes; at most {MAX_MANIFEST_BYTES} are read")
    config, length = _parsed(text, path)
    for step in config.steps.values():
        check_templates(step, path)
    return Manifest(
        path=path,
        steps=dict(config.steps),
        pipelines=dict(config.pipelines),
        tasks=dict(config.tasks),
        config=config,
        length=length,
    )


def _parsed(text: bytes, path: str) -> tuple[Config, int]:
    """Return the parsed file, and its length after its aliases are expanded."""
    try:
        text.decode()
        length = len(text) + _check_bounds(text, path)
        document, items = _load(text)
        if items is not None:
            _check_items(document, items, path)
        return valohai_yaml.parse([] if items is None else items, validate=False), length
    except PlanError:
        raise
    except UnicodeDecodeError as error:
        raise PlanError(f"{path}{_at_byte(text, error.start)}: it is not UTF-8 text") from error
    except yaml.reader.ReaderError as error:
        raise PlanError(
            f"{path}{_at_byte(text, error.position)}: it contains a character that YAML forbids"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise PlanError(f"{path}{_at(mark)}: {error.problem or error.context}") from error
    except Exception as error:
        # The parser raises many kinds of exceptions: IndexError, TypeError, RecursionError, ...
        raise PlanError(f"{path} is not a valid valohai.yaml: {_one_line(error)}") from error


def _check_bounds(text: bytes, path: str) -> int:
    """Return the length with expanded aliases, by iterating over the parser's events.

    Raises `PlanError` for excessive depth or length.
    """
    expanded: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, _LENGTH_PER_VALUE))
            if len(open_nodes) > _MAX_DEPTH:
                raise PlanError(f"{path}{_at(event.start_mark)}: nested more than {_MAX_DEPTH} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, _size_of_scalar(event, path)
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, _size_of_alias(event, expanded, path)
        else:
            continue
        if anchor is not None:
            expanded[anchor] = size
        outer, total = open_nodes[-1]
        open_nodes[-1] = (outer, total + size)
        if total + size > _MAX_EXPANDED_LENGTH:
            raise PlanError(f"{path}{_at(event.start_mark)}: its aliases expand to too much text")
    return open_nodes[0][1]


def _size_of_scalar(event: yaml.ScalarEvent, path: str) -> int:
    if event.implicit[0] and _LONG_NUMBER.fullmatch(event.value):
        raise PlanError(f"{path}{_at(event.start_mark)}: a number of {len(event.value)} digits")
    return len(event.value) + _LENGTH_PER_VALUE


def _size_of_alias(event: yaml.AliasEvent, expanded: Mapping[str, int], path: str) -> int:
    if event.anchor is None or event.anchor not in expanded:
        raise PlanError(
            f"{path}{_at(event.start_mark)}: the alias *{event.anchor} is inside the value that it refers to"
        )
    return expanded[event.anchor]


def _load(text: bytes) -> tuple[yaml.Node | None, Any]:
    """Return the document's nodes, with their positions in the text, and its plain values.

    libyaml is twenty times faster than the Python code of PyYAML that the platform's parser uses.
    """
    loader = CSafeLoader(text)
    try:
        document = loader.get_single_node()
        return document, None if document is None else loader.construct_document(document)
    finally:
        loader.dispose()


def _check_items(document: yaml.Node | None, items: Any, path: str) -> None:
    """Raise `PlanError` for violations of the platform's schema, and for two items of one kind and name.

    The platform uses the last of the two, but a trigger's reference to them would be ambiguous.
    """
    if not isinstance(items, list):
        raise PlanError(f"{path}{_at(_mark(document, ()))}: it has to be a list of steps and other items")
    if len(items) > _MAX_ITEMS:
        raise PlanError(f"{path} has {len(items)} items; at most {_MAX_ITEMS} are read")
    # Each violation contains a copy of the value's text, so only the first few are generated.
    violations = list(islice(get_validator().iter_errors(items), _MAX_VIOLATIONS + 1))
    if violations:
        raise PlanError(_first_violation(violations, document, path))
    seen: set[tuple[str, str]] = set()
    for index, item in enumerate(items):
        for kind, definition in item.items():
            named = definition.get("name") if isinstance(definition, dict) else None
            if not isinstance(named, str):
                continue
            item_key = ("pipeline" if kind == "blueprint" else kind, named)
            if item_key in seen:
                place = _at(_mark(document, (index, kind, "name")))
                raise PlanError(f"{path}{place}: there are two {item_key[0]} items named {_one_line(named)}")
            seen.add(item_key)


def _first_violation(violations: Sequence[Any], document: yaml.Node | None, path: str) -> str:
    """Return the first violation of the schema, its position and the number of further violations."""
    first = _innermost(violations[0])
    further = len(violations) - 1
    count = f"{further} or more" if further == _MAX_VIOLATIONS else f"{further} more"
    place = "/".join(str(part) for part in first.absolute_path)
    where = f"{path}{_at(_mark(document, first.absolute_path))}: {place + ': ' if place else ''}"
    return f"{where}{_one_line(first.message)}{f' (and {count})' if further else ''}"


def _innermost(violation: Any) -> Any:
    """Return the violation to report: of alternative schemas, that of the schema for the value's type."""
    branches: dict[Any, list[Any]] = {}
    for inner in violation.context:
        branches.setdefault(inner.relative_schema_path[0], []).append(inner)
    meant = [branch for branch in branches.values() if all(inner.validator != "const" for inner in branch)]
    return _innermost(meant[0][0]) if len(meant) == 1 else violation


def _mark(node: yaml.Node | None, path: Iterable[str | int]) -> yaml.Mark | None:
    """Return the position of the value at a path, or of the value that contains it if it has none."""
    for part in path:
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == part), node)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
    return node.start_mark if node is not None else None


def check_templates(step: Step, path: str) -> None:
    """Raise `PlanError` for a `pass-as` that could read attributes of the parser's objects."""
    for parameter in step.parameters.values():
        for template in (parameter.pass_as, parameter.pass_true_as, parameter.pass_false_as):
            rest = str(template or "")
            for field in _PASS_AS_FIELDS:
                rest = rest.replace(field, "")
            if "{" in rest or "}" in rest:
                raise PlanError(
                    f"{path}: step {step.name}, parameter {parameter.name}: a pass-as may contain"
                    f" {', '.join(_PASS_AS_FIELDS)} and no other braces"
                )


def line_of(reason: str, path: str) -> int | None:
    """Return the line that a `PlanError` blames, 1 if only the file; None if it is about something else."""
    if not reason.startswith(path):
        return None
    found = _AT.match(reason, len(path))
    return int(found[1]) if found is not None else 1


def _at(mark: Any) -> str:
    return f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""


def _at_byte(text: bytes, position: int) -> str:
    line_start = text.rfind(b"\n", 0, position) + 1
    line = text.count(b"\n", 0, position) + 1
    return f", line {line}, column {position - line_start + 1}"


def _one_line(error: object) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MAX_MESSAGE_LENGTH else f"{text[: _MAX_MESSAGE_LENGTH - 1]}…"
