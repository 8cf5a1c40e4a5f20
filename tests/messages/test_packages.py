"""The package in a stored request is replaced, and nothing else of the body changes."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.messages.execution_request import (
    ExecutionRequest,
    MergeGroup,
    Package,
    PullRequest,
    Submodule,
    schema,
)
from gateway.messages.packages import PlannedPackage, package_in, with_package
from testing.records import NOW
from tests.plan.facts import planned, trigger

PLANNED = PlannedPackage(id="c" * 64, format="tar.gz", sha256="d" * 64, size=3)
SIGNED = Package(
    id="c" * 64,
    url="https://push.example/p?signature=1",
    expires_at=NOW + timedelta(days=7),
    sha256="e" * 64,
    size=4,
    format="tar.gz",
    rebuilt=True,
)
SCHEMA = schema()
DECOY = '"package":{"id":"x","format":"tar.gz","sha256":"x","size":1}'


def request(text: str, package: Package | None) -> ExecutionRequest:
    """Return a request with a text wherever a push can put one, and the text as a key where one is free."""
    [made] = planned(trigger()).requests
    step = made.execution.model_copy(
        update={"definition": {"package": {"id": text}, text: {"package": text}}}
    )
    return made.model_copy(
        update={
            "execution": step,
            "commit": made.commit.model_copy(update={"message": text}),
            "package": package,
            "submodules": (Submodule(path=text, url=text, commit=text),),
            "pull_request": PullRequest(number=text, source=text, target=text, from_fork=None),
            "merge_group": MergeGroup(base=text),
        }
    )


@given(text=st.text() | st.just(DECOY) | st.just(f"{{{DECOY}}}"), has_package=st.booleans())
def test_the_package_of_the_request_is_replaced_whatever_a_push_contains(
    text: str, *, has_package: bool
) -> None:
    """Also if texts and free keys look like another package; every other value stays as it is."""
    # Of lone surrogates, which JSON in UTF-8 cannot hold, the planner has made something else.
    text = text.encode(errors="replace").decode()
    unsigned = PLANNED.unsigned("https://üx.example", now=NOW) if has_package else None
    body = request(text, unsigned).model_dump_json().encode()
    assert package_in(body) == (PLANNED if has_package else None)
    for package in (SIGNED, None):
        replaced = with_package(body, package)
        shown = None if package is None else package.model_dump(mode="json")
        assert json.loads(replaced) == {**json.loads(body), "package": shown}
        ExecutionRequest.model_validate_json(replaced)
        assert with_package(replaced, unsigned) == body


def keys(part: Any) -> set[str]:
    """Return the keys that a part of the schema allows; `*` stands for any key."""
    if isinstance(part, list):
        return {key for item in part for key in keys(item)}
    if not isinstance(part, dict):
        return set()
    name = part.get("$ref", "").rpartition("/")[2]
    inner = keys(SCHEMA["$defs"][name]) if name else {key for value in part.values() for key in keys(value)}
    is_free = part.get("additionalProperties", False) is not False
    return inner | set(part.get("properties", ())) | ({"*"} if is_free else set())


def test_no_field_behind_the_package_has_free_keys() -> None:
    """Otherwise a push could name its own package there: put such a field before it."""
    fields = list(SCHEMA["properties"])
    behind = fields[fields.index("package") + 1 :]
    assert behind
    assert not {"*", "package"} & keys([SCHEMA["properties"][name] for name in behind])
    assert "*" in keys(SCHEMA["properties"]["execution"])


def test_the_package_of_an_earlier_version_is_found() -> None:
    """Its URL was signed when the request was planned, and it had no date."""
    earlier = {"id": "c" * 64, "url": "https://old.example/p?signature=2", "sha256": "d" * 64, "size": 3}
    body = json.dumps({"id": "r1", "package": {**earlier, "format": "tar.gz"}}, separators=(",", ":"))
    assert package_in(body.encode()) == PLANNED
    replaced: dict[str, Any] = json.loads(with_package(body.encode(), SIGNED))
    assert replaced == {"id": "r1", "package": SIGNED.model_dump(mode="json")}


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b"padding"])
def test_a_body_without_a_package_stays_as_it_is(body: bytes) -> None:
    """For example one that was not read."""
    assert package_in(body) is None
    assert with_package(body, SIGNED) == body
