"""The schemas and the AsyncAPI document in the hands of others' tools: ajv, jsonschema, AsyncAPI's parser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gateway.messages.events import event_schema
from gateway.messages.execution_cancelled import cancelled_schema
from gateway.messages.execution_request import schema
from gateway.messages.execution_status import status_schema
from gateway.messages.schema import examples
from testing.example import messages
from testing.npm import installed, run_node
from tests.plan.facts import EVERYTHING, MANIFEST, planned

DOCS = Path(__file__).parents[2] / "docs"
SCHEMAS = {
    "execution-request": schema(),
    "execution-status": status_schema(),
    "execution-cancelled": cancelled_schema(),
    "push-fetched": event_schema("push.fetched"),
    "delivery-failed": event_schema("delivery.failed"),
}
AJV = ("ajv@8.17.1", "ajv-formats@3.0.1")
PARSER = ("@asyncapi/parser@3.6.0",)

VALIDATE = """
import { createRequire } from "node:module";
const require = createRequire(process.argv[1] + "/");
const Ajv = require("ajv/dist/2020");
const addFormats = require("ajv-formats");
let input = "";
for await (const chunk of process.stdin) input += chunk;
const { schemas, messages } = JSON.parse(input);
const found = {};
for (const [name, schema] of Object.entries(schemas)) {
  const ajv = new Ajv({ strict: true, allErrors: true });
  addFormats(ajv);
  const validate = ajv.compile(schema);
  found[name] = messages[name].map((message) => (validate(message) ? null : ajv.errorsText(validate.errors)));
}
console.log(JSON.stringify(found));
"""
PARSE = """
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
const require = createRequire(process.argv[1] + "/");
const { Parser } = require("@asyncapi/parser");
const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
const problems = diagnostics.filter((found) => found.severity < 2).map((found) => found.message);
const channels = [...(document?.channels() ?? [])].map((one) => [one.id(), one.operations().all().length]);
console.log(JSON.stringify({ problems, channels }));
"""


def planned_messages() -> list[Any]:
    """Return requests as the planner makes them, from small files and from one that sets every field."""
    runs = [{"step": "train"}, {"pipeline": "nightly"}]
    plans = [planned({"name": "t", "run": run}, manifest=MANIFEST) for run in runs]
    kinds = [{"step": "everything"}, {"pipeline": "everything"}, {"task": "everything"}]
    plans += [planned({"name": "t", "run": run}, manifest=EVERYTHING) for run in kinds]
    return [request.model_dump(mode="json") for plan in plans for request in plan.requests]


def without_a_required_field(made: Any) -> Any:
    """Return a message without its first field."""
    return dict(list(made.items())[1:])


def test_ajv_takes_the_schemas_in_its_strict_mode(pytestconfig: pytest.Config) -> None:
    """It accepts what the planner makes, and refuses what lacks a field or is of another kind."""
    assert pytestconfig.cache is not None
    modules = installed(pytestconfig.cache, *AJV)
    real = messages()
    real["execution-request"] += planned_messages()
    assert len(real["execution-request"]) == 8
    given = {name: [*made, without_a_required_field(made[0])] for name, made in real.items()}
    request = real["execution-request"][0]
    given["execution-request"].append({**request, "execution": {**request["execution"], "kind": "node"}})
    found = run_node(VALIDATE, str(modules), stdin={"schemas": SCHEMAS, "messages": given})
    for name, made in real.items():
        assert found[name][: len(made)] == [None] * len(made)
        assert "must have required property" in found[name][len(made)]
    assert "must be equal to constant" in found["execution-request"][-1]


def test_the_parser_of_asyncapi_accepts_the_document(pytestconfig: pytest.Config) -> None:
    """It also compares the examples with headers and payload; and each channel has an operation."""
    assert pytestconfig.cache is not None
    modules = installed(pytestconfig.cache, *PARSER)
    found = run_node(PARSE, str(modules), str(DOCS / "asyncapi.json"))
    assert found["problems"] == []
    assert len(found["channels"]) == 8
    assert [channel for channel, operations in found["channels"] if operations == 0] == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_has_an_example_of_every_kind(name: str) -> None:
    """If it fails: run `make documents`, and review the difference as a consumer would."""
    assert SCHEMAS[name]["examples"] == examples(name) == messages()[name]
    for example in SCHEMAS[name]["examples"]:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=checker).validate(example)


def test_the_examples_are_of_all_kinds() -> None:
    """Of executions and of nodes."""
    made = [example["execution"] for example in examples("execution-request")]
    assert [execution["kind"] for execution in made] == ["step", "pipeline", "task"]
    assert {node["kind"] for node in made[1]["nodes"]} == {"execution", "task", "deployment"}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_has_only_standard_keywords_and_requires_what_is_sent(name: str) -> None:
    """No keyword of OpenAPI, no default, and every branch of a oneOf has its kind as a constant."""
    described = SCHEMAS[name]
    required = {"ExecutionStatus": ["id", "state", "at", "sequence"], "RunOutput": ["name"]}
    assert set(described) <= {"$schema", "$id", "$defs", "title", "type", "properties", "required"} | {
        "description",
        "examples",
    }
    version = "1.3" if name == "execution-request" else "1.0"
    assert described["$id"] == f"https://pushgate.dev/schemas/{name}-{version}.json"
    for part in subschemas({key: value for key, value in described.items() if key != "examples"}):
        assert not {"discriminator", "default", "nullable", "version"} & part.keys(), part
        # A report has optional fields; what Pushgate sends has none.
        sent = required.get(part.get("title", ""), list(part.get("properties", [])))
        assert part.get("required", []) == sent, part
        for branch in part.get("oneOf", ()):
            branch_name = branch["$ref"].rpartition("/")[2]
            assert "const" in described["$defs"][branch_name]["properties"]["kind"]


def subschemas(value: Any) -> Iterator[dict[str, Any]]:
    """Return all schemas within one."""
    if isinstance(value, dict):
        if "properties" not in value or isinstance(value.get("type"), str):
            yield value
        for key, item in value.items():
            inner = item.values() if key in {"properties", "$defs"} and isinstance(item, dict) else [item]
            for part in inner:
                yield from subschemas(part)
    elif isinstance(value, list):
        for item in value:
            yield from subschemas(item)
