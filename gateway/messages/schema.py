"""The JSON Schemas of the messages: draft 2020-12, for standard validators in their strict modes."""

import json
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from gateway.messages.names import schema_id


class Part(BaseModel):
    """A part of a message. Every field is always sent, so all of them are `required` in the schema."""

    model_config = ConfigDict(
        frozen=True, json_schema_serialization_defaults_required=True, serialize_by_alias=True
    )


class StandardSchema(GenerateJsonSchema):
    """Generates JSON Schema without foreign keywords, and without defaults.

    In our messages, every field is sent; what a report omits is null.

    Each branch of a `oneOf` has its `kind` as a `const`, so OpenAPI's `discriminator` is not needed.
    """

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        """Return the `oneOf` of a union."""
        made = super().tagged_union_schema(schema)
        return {keyword: value for keyword, value in made.items() if keyword != "discriminator"}

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Return the schema of a field that has a default."""
        return self.generate_inner(schema["schema"])


def schema_of(
    model: type[BaseModel], *, name: str, version: str, mode: JsonSchemaMode = "serialization"
) -> dict[str, Any]:
    """Return the JSON Schema of the body of messages, with complete examples.

    `mode` is `validation` for messages that Pushgate receives.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": schema_id(name, version),
        **model.model_json_schema(mode=mode, schema_generator=StandardSchema),
        "examples": examples(name),
    }


def examples(name: str) -> list[Any]:
    """Return the complete examples of a message, which the planner made: see `testing.documents`."""
    text = (files("gateway.messages") / "examples" / f"{name}.json").read_text(encoding="utf-8")
    made: list[Any] = json.loads(text)
    return made
