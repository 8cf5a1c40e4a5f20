"""The wire contract: schemas and ids."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages.events import event_schema
from gateway.messages.execution_cancelled import cancelled_schema
from gateway.messages.execution_request import execution_id, schema

DOCS = Path(__file__).parents[2] / "docs"
CONTRACT = {
    "execution-request": schema(),
    "execution-cancelled": cancelled_schema(),
    "push-fetched": event_schema("push.fetched"),
    "delivery-failed": event_schema("delivery.failed"),
}

FACTS = {
    "connection": "cn_1",
    "ref": "refs/heads/main",
    "generation": 3,
    "before": "a" * 40,
    "after": "b" * 40,
    "trigger": "train@main",
}


@pytest.mark.parametrize("name", CONTRACT)
def test_the_schema_in_docs_is_that_of_the_model(name: str) -> None:
    """If it fails, write the schema to the file, and review the difference as a consumer would."""
    assert json.loads((DOCS / f"{name}.schema.json").read_text()) == CONTRACT[name]


@pytest.mark.parametrize("name", CONTRACT)
def test_every_field_of_the_contract_is_described(name: str) -> None:
    """Other teams build on the schema, so it has to be self-explanatory."""
    described = CONTRACT[name]
    undescribed = [
        f"{title}.{field_name}"
        for title, model in [("", described), *described.get("$defs", {}).items()]
        for field_name, field in model["properties"].items()
        if "description" not in field
    ]
    assert undescribed == []


def identity(facts: Mapping[str, Any]) -> str:
    """Return the id of the request for these facts."""
    return execution_id(**facts)


def test_an_id_is_stable() -> None:
    """Consumers drop ids that they have seen, so a release must not give known facts another id."""
    assert identity(FACTS) == "d9e74563-a277-532b-8778-02d891da22bc"


_TEXT = st.text(max_size=6)
_ID = st.none() | st.sampled_from(["a" * 40, "b" * 40])
_FACTS = st.fixed_dictionaries(
    {
        "connection": _TEXT,
        "ref": _TEXT,
        "generation": st.integers(0, 3),
        "before": _ID,
        "after": _ID,
        "trigger": _TEXT,
    }
)


@given(one=_FACTS, other=_FACTS)
def test_the_same_facts_have_the_same_id_and_others_have_others(
    one: dict[str, object], other: dict[str, object]
) -> None:
    """A repeated request has the first one's id, and no other request does."""
    same = identity(one) == identity(other)
    assert same == (one == other)


@given(left=_TEXT, right=_TEXT, moved=st.integers(0, 6))
def test_neighbouring_facts_do_not_run_together(left: str, right: str, moved: int) -> None:
    """`ab` and `c` are not `a` and `bc`."""
    joined = left + right
    cut = min(moved, len(joined))
    one = identity({**FACTS, "connection": left, "ref": right})
    other = identity({**FACTS, "connection": joined[:cut], "ref": joined[cut:]})
    assert (one == other) == (cut == len(left))


def _parts(described: Any) -> list[Any]:
    return [described, *described.get("$defs", {}).values()]


def _fields(part: Any) -> Any:
    return part["properties"]


@pytest.mark.parametrize("name", CONTRACT)
def test_the_contract_changes_only_compatibly(name: str) -> None:
    """The fields of the first version are still there, with the same meaning."""
    first = json.loads((Path(__file__).parent / f"{name}-1.0.schema.json").read_text())
    now = CONTRACT[name]
    # The second number of the version counts the fields that were added; the first never changes.
    assert re.sub(r"-1\.\d+\.json$", "-1.0.json", now["$id"]) == first["$id"]
    is_larger = sum(map(len, map(_fields, _parts(now)))) > sum(map(len, map(_fields, _parts(first))))
    assert (now["$id"] != first["$id"]) == is_larger
    for part, old in {"": first, **first.get("$defs", {})}.items():
        new = now["$defs"][part] if part else now
        assert set(old["required"]) <= set(new["required"]), part
        for field, first_field in old["properties"].items():
            # All of it: the description, the type, and the values of an enum, also within a list or an anyOf.
            assert new["properties"][field] == first_field, (part, field)
