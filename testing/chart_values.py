"""The page helm/README.md, made from the comments of the chart's values as helm-docs makes it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

VALUES = Path(__file__).parents[1] / "helm" / "values.yaml"

_TYPES = {bool: "bool", int: "int", str: "string", list: "list", dict: "object"}
_DESCRIPTION = "# -- "
_HEAD = """\
# The chart of Pushgate

<!-- Made from the comments of values.yaml by `make documents`: do not edit. -->

[docs/kubernetes.md](../docs/kubernetes.md) describes the installation, and which values to set first.
`ci/` has examples: [minimal](ci/minimal-values.yaml), [embedded](ci/embedded-values.yaml) with connections as
values, [production](ci/production-values.yaml), [OpenShift](ci/openshift-values.yaml), and
[every value](ci/everything-values.yaml) in use. Unknown keys are refused.
"""
_COLUMNS = "| key | type | default | description |\n| --- | --- | --- | --- |\n"


def values_page() -> str:
    """Return the page: a table of each section. Raises `ValueError` for a value without a description."""
    text = VALUES.read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    general, sections = "", ""
    for key, value in root.value:
        description, comment = _comments(lines, key)
        rows = "".join(_rows(lines, value, (key.value,), description))
        if description:
            general += rows
        else:
            heading = f"{' '.join(comment)}\n\n" if comment else ""
            sections += f"\n## {key.value}\n\n{heading}{_COLUMNS}{rows}"
    return f"{_HEAD}\n## The release\n\n{_COLUMNS}{general}{sections}"


def _rows(lines: list[str], node: yaml.Node, path: tuple[str, ...], description: str) -> Iterator[str]:
    """Yield the row of a value or, if the section has no description, those of the values in it."""
    where = ".".join(path)
    if description:
        value: Any = yaml.safe_load(yaml.serialize(node))
        cells = (f"`{where}`", _TYPES[type(value)], f"`{json.dumps(value)}`", description)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"
    elif isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            yield from _rows(lines, value, (*path, key.value), _comments(lines, key)[0])
    else:
        raise ValueError(f"helm/values.yaml: {where} has no description: write `{_DESCRIPTION}…` above it")


def _comments(lines: list[str], key: yaml.Node) -> tuple[str, list[str]]:
    """Return the description above a key, which begins with two dashes, and the lines of another comment."""
    above: list[str] = []
    mark = key.start_mark
    if lines[mark.line][: mark.column].strip():
        return "", []  # within the braces of another value
    for line in reversed(lines[: mark.line]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip())
    starts = [number for number, line in enumerate(above) if line.startswith(_DESCRIPTION)]
    if not starts:
        return "", [line.removeprefix("#").strip() for line in above]
    first, *more = above[starts[-1] :]
    return " ".join(
        [first.removeprefix(_DESCRIPTION), *(line.removeprefix("#").strip() for line in more)]
    ), []
