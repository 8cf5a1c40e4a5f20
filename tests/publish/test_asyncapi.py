"""The AsyncAPI document: it is valid for other tools, and matches what is published."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from gateway.plan.outcome import event
from gateway.plan.planner import ConnectionFacts, UpdateFacts
from gateway.publish.asyncapi import document
from gateway.publish.cloudevents import ContentMode, message, routing_key
from gateway.publish.topology import Topology
from tests.publish.outbox import event as stored_event

with warnings.catch_warnings():
    # Two of its models have a field `schema`, which shadows pydantic's deprecated method.
    warnings.simplefilter("ignore", UserWarning)
    from asyncapi3.models import AsyncAPI3

IN_DOCS = Path(__file__).parents[2] / "docs" / "asyncapi.json"
DOCUMENT = document(topology=Topology())


def test_the_document_in_docs_is_the_one_that_the_code_makes() -> None:
    """If it fails: write the document to the file, and review the difference as a consumer would."""
    assert json.loads(IN_DOCS.read_text()) == DOCUMENT


@pytest.mark.parametrize(
    "made",
    [
        DOCUMENT,
        document(topology=Topology(lanes=("fast", "slow")), modes=("structured",), events=()),
        document(topology=Topology(exchange="acme", queue="acme.runs"), events=("delivery.failed",)),
        document(topology=Topology(lanes=("fast",), ordered=2)),
    ],
)
def test_the_document_is_valid(made: dict[str, Any]) -> None:
    """Independent models of AsyncAPI 3 accept it, and every reference resolves."""
    AsyncAPI3.model_validate(made)
    assert [reference for reference in references(made) if found(made, reference) is None] == []


def without_a_title(made: dict[str, Any]) -> None:
    """Leave out a required field."""
    del made["info"]["title"]


def with_a_wrong_action(made: dict[str, Any]) -> None:
    """Give an operation an action that does not exist."""
    made["operations"]["sendPushFetched"]["action"] = "publish"


def with_an_unknown_field(made: dict[str, Any]) -> None:
    """Give a channel a field that AsyncAPI does not have."""
    made["channels"]["pushFetched"]["routing_key"] = "push.fetched"


def with_a_wrong_binding(made: dict[str, Any]) -> None:
    """Give an exchange a type that AMQP does not have."""
    made["channels"]["pushFetched"]["bindings"]["amqp"]["exchange"]["type"] = "quorum"


@pytest.mark.parametrize(
    "spoil", [without_a_title, with_a_wrong_action, with_an_unknown_field, with_a_wrong_binding]
)
def test_the_validator_sees_mistakes(spoil: Callable[[dict[str, Any]], None]) -> None:
    """A validator that accepts everything would prove nothing."""
    made = json.loads(json.dumps(DOCUMENT))
    spoil(made)
    with pytest.raises(ValidationError):
        AsyncAPI3.model_validate(made)


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_a_real_message_is_what_the_document_says(mode: ContentMode) -> None:
    """Address, type, headers and body: of an event as the planner makes it and the publisher sends it."""
    new = event(
        "push.fetched",
        connection=ConnectionFacts(
            id="c1",
            project="digits",
            provider="github",
            url="https://github.com/acme/digits.git",
            yaml_path="valohai.yaml",
            repository_id="1",
            repository_name="acme/digits",
            web_url=None,
        ),
        update=UpdateFacts(
            delivery="d1",
            ref="refs/heads/main",
            kind="branch",
            name="main",
            before=None,
            after="a" * 40,
            action="create",
            generation=1,
            pusher="ada",
        ),
        state="planned",
        reason="1 execution request",
        triggers=("train@main",),
    )
    stored = stored_event(new.id, body=new.model_dump_json().encode())
    sent = message(stored, public_url="https://push.example", mode=mode)

    channel = DOCUMENT["channels"]["pushFetched"]
    assert channel["address"].replace("{project}", "digits") == routing_key(stored)
    name = "pushFetched" if mode == "binary" else "pushFetchedStructured"
    described = found(DOCUMENT, channel["messages"][name]["$ref"])
    assert described["contentType"] == sent.content_type
    assert described["bindings"]["amqp"]["messageType"] == described["name"] == sent.type
    assert set(described["x-properties"]) == {
        field
        for field, value in sent.info().items()
        if value is not None and field not in {"body", "body_size", "headers", "content_type", "priority"}
    }
    for part, value in (("headers", dict(sent.headers)), ("payload", json.loads(sent.body))):
        # In the schema of the part alone the references would not resolve.
        whole = {**DOCUMENT, "$schema": "http://json-schema.org/draft-07/schema#", "allOf": [described[part]]}
        jsonschema.validate(value, whole, format_checker=jsonschema.FormatChecker())
        spoiled = {key: one for key, one in value.items() if key != next(iter(value))}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoiled, whole)
        if mode == "structured" or part == "headers":
            assert set(described[part]["properties"]) == set(value)


def references(value: Any) -> Iterator[str]:
    """Return every reference within a document."""
    if isinstance(value, dict):
        for key, one in value.items():
            if key == "$ref":
                yield one
            else:
                yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def found(made: dict[str, Any], reference: str) -> Any:
    """Return the target of a reference; None if it does not resolve."""
    here: Any = made
    for word in reference.removeprefix("#/").split("/"):
        here = here.get(word) if isinstance(here, dict) else None
    return here
