"""Nothing that the platform's parser reads is lost: the messages have every field of its model."""

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import valohai_yaml
from valohai_yaml import objs
from valohai_yaml.objs import Item

from gateway.messages.execution_request import schema
from tests.plan.facts import EVERYTHING, planned

CONFIG = valohai_yaml.parse(EVERYTHING)
CLASSES = [
    made
    for made in map(objs.__dict__.get, objs.__all__)
    if inspect.isclass(made)
    and issubclass(made, Item)
    # Base classes, and the file as a whole.
    and made not in {Item, objs.Node, objs.WorkloadResourceItem, objs.Config}
]
NOT_ATTRIBUTES = {
    # The schema of valohai.yaml does not allow it.
    (objs.PipelineParameter, "value"),
    # A node with a commit of its own is refused.
    (objs.ExecutionNode, "commit"),
    (objs.TaskNode, "commit"),
}


def items(value: Any) -> Iterator[Item]:
    """Return all of the parser's objects within one."""
    if isinstance(value, Item):
        yield value
        value = {name: item for name, item in vars(value).items() if name != "_original_data"}
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from items(item)


def pairs(value: Any) -> Iterator[tuple[str, str]]:
    """Return the name and the value, as text, of each field within a value."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield str(name), json.dumps(item, sort_keys=True)
            yield from pairs(item)
    elif isinstance(value, list):
        for item in value:
            yield from pairs(item)


def sent(kind: str) -> Any:
    """Return the message for the item of a kind."""
    [request] = planned({"name": "t", "run": {kind: "everything"}}, manifest=EVERYTHING).requests
    return request.model_dump(mode="json")


FOUND = {pair for kind in ("step", "task", "pipeline") for pair in pairs(sent(kind))}
ITEMS = [item for item in items(CONFIG) if not isinstance(item, objs.Config)]


@pytest.mark.parametrize("made", CLASSES, ids=lambda made: made.__name__)
def test_the_file_sets_every_attribute_that_the_parser_has(made: type[Item]) -> None:
    """If a new version of the parser reads more, the file above has to set it."""
    seen = [item for item in ITEMS if type(item) is made]
    signature = inspect.signature(made)
    unset = [
        name
        for name, parameter in signature.parameters.items()
        if (made, name) not in NOT_ATTRIBUTES
        and all(getattr(item, name) in (parameter.default, None, [], {}) for item in seen)
    ]
    assert seen
    assert unset == []


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: type(item).__name__)
def test_every_field_of_the_parser_is_in_a_message(item: Item) -> None:
    """With its value, under the parser's own name."""
    serialized = json.loads(json.dumps(item.serialize()))
    lost = [
        (name, value)
        for name, value in serialized.items()
        if (name, json.dumps(value, sort_keys=True)) not in FOUND
    ]
    assert serialized
    assert lost == []


def test_our_own_fields_have_one_spelling() -> None:
    """Hyphens are only in definitions, which are valohai.yaml's."""
    names = {name for part in schema()["$defs"].values() for name in part["properties"]}
    assert {name for name in names if not re.fullmatch(r"[a-z][a-z0-9_]*", name)} == set()
