"""The references in docs/ that are made from the code: of all settings, commands and metrics."""

import ast
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin

import typer

from gateway.api.exposition import Processes
from gateway.cli.app import app
from gateway.cli.gateways import SHARED
from gateway.metrics import DESCRIBED
from gateway.settings import PREFIX, Settings

_NOTE = "<!-- Made from the code by `make documents`: do not edit. -->"
_FORMATS = {"path": "path", "password": "secret text"}
_BOUNDS = {"exclusiveMinimum": "more than", "minimum": "at least", "maximum": "at most"}
_TYPES = {"boolean": "true or false", "string": "text"}

_SETTINGS = f"""\
# Settings

{_NOTE}

[operate.md](operate.md#settings) describes where to set them. Sizes are in bytes, times in seconds. The
items of a list are separated by commas. A setting of the role `web` or `worker` has no effect on a process
with the other role.

| setting | type | default | role | meaning |
| --- | --- | --- | --- | --- |
"""

_COMMANDS = f"""\
# All commands

{_NOTE}

[command-line.md](command-line.md) describes the variables, the [exit statuses](command-line.md#exit-status)
and the tasks. Every command also accepts `--help`, and those that use the REST API accept
[`--url`, `--context`, `--data`](command-line.md#which-gateway) and [`--utc`](command-line.md#output).
"""


def settings_page() -> str:
    """Return docs/settings.md: each setting with its type, default and role, in the order of the class."""
    texts = _texts()
    rows = (
        f"| `{PREFIX}{name.upper()}` | {_type(field)} | {_default(field)} | {field.get('role', 'all')} |"
        f" {texts[name]} |\n"
        for name, field in Settings.model_json_schema()["properties"].items()
    )
    return _SETTINGS + "".join(rows)


def _texts() -> dict[str, str]:
    """Return the text below each field of the settings."""
    [body] = [node.body for node in ast.parse(inspect.getsource(Settings)).body if hasattr(node, "body")]
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }


def _type(field: Mapping[str, Any]) -> str:
    [schema] = [one for one in field.get("anyOf", [field]) if one["type"] != "null"]
    if schema["type"] == "array":
        return f"list of {_choices(schema['items']['enum'])}" if "enum" in schema["items"] else "list"
    if "enum" in schema:
        return f"one of {_choices(schema['enum'])}"
    name = _FORMATS.get(schema.get("format")) or _TYPES.get(schema["type"], schema["type"])
    bounds = [f"{word} {schema[key]}" for key, word in _BOUNDS.items() if key in schema]
    return ", ".join([name, *bounds])


def _choices(values: Iterable[object]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _default(field: Mapping[str, Any]) -> str:
    if field.get("default") in (None, []):
        return "none" if "default" in field else ""
    return f"`{str(field['default']).lower()}`"


def commands_page() -> str:
    """Return docs/commands.md: each command with its usage, arguments, options and examples."""
    return _COMMANDS + "".join(
        _section(name, command) for name, command in _leaves("pushgate", typer.main.get_command(app))
    )


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield each command, and those below each group, with its full name."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for below, one in command.commands.items():
        yield from _leaves(f"{name} {below}", one)


def _section(name: str, command: Any) -> str:
    usage = command.collect_usage_pieces(command.context_class(command, info_name=name))
    paragraphs = [" ".join(text.split()) for text in command.help.split("\n\n")]
    examples = [text for text in paragraphs if re.match("Examples?: ", text)]
    # A command that is a client of the API has all of these.
    shared = SHARED if "utc" in [one.name for one in command.params] else ()
    parameters = [one for one in command.params if not one.hidden and one.name not in shared]
    parts = [f"## {name}", f"```text\n{' '.join([name, *usage])}\n```"]
    parts += [text for text in paragraphs if text not in examples]
    if parameters:
        rows = [_row(one) for one in parameters]
        parts.append("\n".join(["| argument or option | meaning |", "| --- | --- |", *rows]))
    lines = [f"    {one}" for text in examples for one in text.partition(": ")[2].split("; ")]
    parts += ["Examples:", "\n".join(lines)] if lines else []
    return "".join(f"\n{part}\n" for part in parts)


def _row(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    names = (
        [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.metavar or parameter.name]
    )
    text = parameter.help.replace("|", "\\|")
    facts = "; ".join(_facts(parameter, is_option=is_option))
    return f"| {_choices(names)} | {text}{f' ({facts})' if facts else ''} |"


def _facts(parameter: Any, *, is_option: bool) -> Iterator[str]:
    annotation = parameter.type_descriptor.annotation
    if is_option and parameter.required:
        yield "required"
    if get_origin(annotation) is Literal:
        yield f"one of {_choices(get_args(annotation))}"
    if parameter.min is not None:
        yield f"{parameter.min} {'or more' if parameter.max is None else f'to {parameter.max}'}"
    if is_option and not parameter.is_bool_flag and parameter.default is not None:
        yield f"default: `{parameter.default}`"
    if parameter.envvar:
        yield f"also in the variable `{parameter.envvar}`"


def metrics_table() -> str:
    """Return the table of all metrics in docs/observability.md, in the order of their module."""
    own = [(one.name, one.type, one.labels, one.text) for one in DESCRIBED]
    of_processes = [
        (sample.name, family.type, tuple(sample.labels), family.documentation)
        for family in Processes({"0": os.getpid()}).collect()
        for sample in family.samples
    ]
    head = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"
    return head + "".join(
        f"| `{name}` | {kind} | {_choices(labels)} | {text} |\n"
        for name, kind, labels, text in own + of_processes
    )
