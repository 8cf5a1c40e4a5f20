"""The operations of the REST API, each declared once for the routing and the OpenAPI document.

https://spec.openapis.org/oas/v3.1.1.html
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_type_hints
from urllib.parse import urlsplit

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue, models_json_schema
from pydantic_core.core_schema import (
    DataclassField,
    ModelField,
    TypedDictField,
    WithDefaultSchema,
)
from starlette.routing import Route
from typing_extensions import TypeAliasType

from gateway.api.auth import AdminToken
from gateway.api.connection_views import HealthState
from gateway.api.endpoints import Answering, Answers, guarded, unless_signed
from gateway.api.idempotency import Idempotency
from gateway.api.query import MAX_WAIT_SECONDS
from gateway.api.root_paths import ROOT_PATHS, UnreadableWebhook, WebhookError, WebhookReceipt
from gateway.api.schemas import Error, Page
from gateway.api.source_views import RepositoryState
from gateway.api.statuses import (
    COMPONENTS,
    CONTENT_RANGE,
    ETAG,
    FILE_HEADERS,
    LINK,
    LOCATION,
    REPLAYED,
    responses,
    without_content,
)
from gateway.api.views import ExecutionState, Outcome, Verdict
from gateway.messages.names import EXECUTION_REQUEST_SCHEMA
from gateway.messages.schema import examples
from gateway.store.statistics import MAX_HOURS

EVENT_TYPE = "application/cloudevents+json"
"""The type of a CloudEvent in structured mode."""

BINARY = "application/octet-stream"
"""The type of bytes that are sent as they are: no browser executes them."""

_BASE = "/api/v1"
_COMPONENT = "#/components/schemas/"
_TAGS = {
    "connections": "Connected repositories: their settings, secrets and refs.",
    "identities": "What Pushgate is at the providers: tokens that connections share.",
    "notification-channels": "Where notifications go, and which.",
    "health": "Whether webhooks arrive and repositories can be read, and what to do if not.",
    "sources": "Organisations and servers with one webhook, whose repositories are connected by rules.",
    "deliveries": "What providers have sent, and what became of it.",
    "statistics": "How many deliveries had which outcome, and how long pushes took.",
    "executions": "Execution requests: the messages to the runners.",
    "dead-letters": "Messages that nobody could deliver.",
    "explain": "Why a push did, or did not, run.",
    "packages": "The code of the commits, for the runners.",
    "webhooks": "Where the providers send their deliveries.",
    "specifications": "The contract, for machines.",
}
_IDS = {
    "connections": "the id of the connection",
    "identities": "the id or the name of the identity",
    "notification-channels": "the id or the name of the notification channel",
    "sources": "the id or the name of the source",
    "deliveries": "the id of the delivery",
    "executions": "the id of the execution request",
    "packages": "the id of the package, as in `package.id` of a message",
    "repository of sources": "the provider's id of the repository",
}


def _chosen(words: TypeAliasType) -> dict[str, Any]:
    """Return the declaration of a parameter that takes one of the words of a type with its own schema."""
    of_words: TypeAdapter[str] = TypeAdapter(words.__value__)
    choices = of_words.json_schema()["enum"]
    return {"schema": {"$ref": f"{_COMPONENT}{words.__name__}"}, "choices": choices}


_WAIT = {"type": "number", "minimum": 0, "maximum": MAX_WAIT_SECONDS, "default": 3}
_QUERY: dict[str, dict[str, Any]] = {
    "connection": {"description": "only records of this connection, by its id or name"},
    "name": {"description": "only connections with exactly this name"},
    "delivery": {"description": "only requests of this delivery, by its id"},
    "outcome": {
        "description": "only deliveries with this outcome",
        **_chosen(Outcome),
    },
    "verdict": {
        "description": "only deliveries with this verdict",
        **_chosen(Verdict),
    },
    "state": {
        "description": "only requests in this state",
        **_chosen(ExecutionState),
    },
    "state of sources": {
        "description": "only repositories in this state",
        **_chosen(RepositoryState),
    },
    "state of health": {
        "description": "only connections in this state",
        **_chosen(HealthState),
    },
    "commit": {
        "description": "an object id or its beginning: only deliveries that moved a ref to it, or to its tag",
        "schema": {"type": "string", "pattern": "^[0-9a-fA-F]{7,64}$"},
        "example": "95790bf891e7",
    },
    "branch": {
        "description": "only records of this ref, by its short or full name",
        "example": "main",
    },
    "author": {
        "description": "only records of this person: who pushed, or the author of the commit",
        "example": "ada",
    },
    "q": {
        "description": "only records with a connection whose name contains this, or with a ref, a person or a"
        " commit (at least 7 digits) that begins with it",
        "example": "main",
    },
    "until": {
        "description": "only records before then",
        "schema": {"type": "string", "format": "date-time"},
        "example": "2026-11-24T09:00:00Z",
    },
    "since of executions": {
        "description": "only executions that were planned since then",
        "schema": {"type": "string", "format": "date-time"},
        "example": "2026-11-23T09:00:00Z",
    },
    "since": {
        "description": "only deliveries since then",
        "schema": {"type": "string", "format": "date-time"},
        "example": "2026-11-23T09:00:00Z",
    },
    "what": {
        "required": True,
        "description": "the id of a delivery or execution, a commit or its beginning, or a URL",
        "example": "95790bf891e7",
    },
    "format": {
        "description": "the format of the package file; by default tar.gz",
        "schema": {"$ref": f"{_COMPONENT}PackageFormat"},
    },
    "expires": {"description": "of the signed URL that a request contains"},
    "signature": {"description": "of the signed URL that a request contains"},
    "limit": {
        "description": "the maximum number of items",
        "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
    },
    "hours": {
        "description": "of how many hours, up to now",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_HOURS, "default": 24},
    },
    "cursor": {"description": "the `next` of the previous page"},
    "key": {
        "description": "a text of your choice: repetitions of the call with the same key change nothing",
        "example": "1",
    },
    "wait": {
        "description": "how many seconds the answer waits for a worker to read the remote",
        "schema": _WAIT,
    },
    "wait of identities": {
        "description": "how many seconds the answer waits for a worker to check it",
        "schema": _WAIT,
    },
    "wait of notification-channels": {
        "description": "how many seconds the answer waits for a worker to send the message",
        "schema": _WAIT,
    },
}
_HEADERS = {
    "Last-Event-ID": "the id of the last event that the client has seen: the stream continues behind it",
    "Range": "one range of bytes, such as bytes=0-1023; of several, the whole file is sent",
    "If-Range": "an ETag: the range counts only for this file",
    "If-None-Match": "an ETag: if it is that of the answer, the answer is 304 without a body",
    "Idempotency-Key": "a text of your choice: a repetition of the request with this key within 24 hours"
    " changes nothing and gets the first answer",
    "If-Match": "an ETag of an earlier answer: the change is made only if the settings are still of that"
    " version",
}
_FILTERS = {"connection", "delivery", "what"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of the REST API, and its endpoint.

    `status` is the status of a successful answer, `media_types` its content types. `body` is the model of the
    request's body; `query` and `headers` are the parameters that the endpoint reads. `errors` are statuses
    besides those that follow from the other fields. `location` is the path of the resource that it makes or
    changes, with a field of the answer in braces. `is_conditional` marks a change that If-Match may prevent,
    `is_file` a file, with ranges. If
    `is_signed`, a URL with a signature, which the endpoint checks, needs no token. `event` is the model of
    the body as a CloudEvent in structured mode.
    """

    method: str
    path: str
    endpoint: Answering
    status: int = 200
    body: type[BaseModel] | None = None
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    media_types: tuple[str, ...] = ("application/json",)
    errors: tuple[int, ...] = ()
    location: str | None = None
    is_conditional: bool = False
    is_file: bool = False
    is_signed: bool = False
    event: type[BaseModel] | None = None

    @property
    def name(self) -> str:
        """The name of the operation: that of its endpoint."""
        return getattr(self.endpoint, "__name__", self.path)

    @property
    def path_parameters(self) -> list[str]:
        """The names of the parameters in the path."""
        return re.findall(r"{(\w+)}", self.path)

    def checked(self, base_url: str) -> Answers:
        """Return the endpoint with its checks, but for that of the token."""
        root = urlsplit(base_url).path
        return Answers(
            endpoint=self.endpoint,
            status=self.status,
            query=self.parameters,
            body=self.body,
            location=None if self.location is None else root + _BASE + self.location,
        )

    def route(self, token: AdminToken, *, base_url: str, keys: Idempotency) -> Route:
        """Return the route, with the check of the token, and with keys for repetitions."""
        endpoint = self.checked(base_url)
        checked = guarded(keys.once(endpoint) if self.method == "POST" else endpoint, token)
        return Route(
            _BASE + self.path,
            unless_signed(endpoint, checked) if self.is_signed else checked,
            methods=[self.method],
        )

    @property
    def answer(self) -> type[BaseModel] | None:
        """The model that the endpoint returns; None where it returns a response."""
        given = get_type_hints(self.endpoint)["return"]
        return given if issubclass(given, BaseModel) else None

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """The declarations of the query parameters, by their names."""
        own = {name: f"{name} of {self.subject}" for name in self.query}
        return {name: _QUERY[own[name] if own[name] in _QUERY else name] for name in self.query}

    @property
    def has_tag(self) -> bool:
        """Whether a successful answer has an ETag."""
        return self.answer is not None and self.method in {"GET", "PATCH"}

    @property
    def subject(self) -> str:
        """The first word of the path, such as connections."""
        return self.path.split("/")[1]

    @property
    def statuses(self) -> set[int]:
        """The statuses of the errors that the operation can answer."""
        statuses = {401, 422, 429, 503, *self.errors}
        statuses |= {403} if self.is_signed else set()
        statuses |= {412} if self.is_conditional else set()
        statuses |= {409} if self.method == "POST" else set()
        if self.method != "GET":
            statuses |= {408, 413}
        if "{" in self.path or _FILTERS & set(self.query):
            statuses.add(404)
        return statuses


class _Schemas(GenerateJsonSchema):
    """Schemas without titles of fields, and without defaults, which generators take for required fields."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the library's interface
        """Return False: a generator would name a type after the title."""
        return False

    def default_schema(self, schema: WithDefaultSchema) -> JsonSchemaValue:
        """Return the schema without its default, which the description names."""
        return self.generate_inner(schema["schema"])

    def field_is_required(self, field: ModelField | DataclassField | TypedDictField, total: bool) -> bool:
        """Return whether a field is always there: in answers, each one is."""
        return self.mode == "serialization" or super().field_is_required(field, total)


def document(operations: Sequence[Operation], *, version: str, base_url: str) -> dict[str, Any]:
    """Return the OpenAPI document of these operations, at this URL."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]]
    models = [(each.answer, "serialization") for each in operations if each.answer is not None]
    models += [(model, "serialization") for model in (Error, WebhookError, WebhookReceipt, UnreadableWebhook)]
    models += [(each.body, "validation") for each in operations if each.body is not None]
    models += [(each.event, "validation") for each in operations if each.event is not None]
    names, shapes = models_json_schema(
        models, ref_template=f"{_COMPONENT}{{model}}", schema_generator=_Schemas
    )
    # One for each kind of execution would be half of the document; the JSON Schema of the message has them.
    shapes["$defs"]["ExecutionRequest"]["examples"] = examples(EXECUTION_REQUEST_SCHEMA)[:1]
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        item = paths.setdefault(_BASE + operation.path, {})
        item[operation.method.lower()] = described = _described(operation, names)
        if operation.is_file:
            item["head"] = _head(described)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Pushgate",
            "version": version,
            "summary": "Turns git pushes into execution requests for machine-learning runners.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": base_url, "description": "this gateway"}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": {**paths, **ROOT_PATHS},
        "components": {
            "schemas": shapes["$defs"],
            "responses": COMPONENTS,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "the admin token"}
            },
        },
        "security": [{"token": []}],
    }


def _described(operation: Operation, names: dict[Any, Any]) -> dict[str, Any]:
    summary, _, more = (operation.endpoint.__doc__ or "").partition("\n\n")
    summary = " ".join(summary.split()).partition("`: ")[2].rstrip(".")
    described: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.subject],
        "summary": summary[:1].upper() + summary[1:],
        **({"description": " ".join(more.split())} if more else {}),
        "parameters": list(_parameters(operation)),
        "responses": {**_success(operation, names), **responses(operation.statuses)},
    }
    if operation.body is not None:
        content = {"application/json": {"schema": names[operation.body, "validation"]}}
        if operation.event is not None:
            content[EVENT_TYPE] = {"schema": names[operation.event, "validation"]}
        is_required = any(field.is_required() for field in operation.body.model_fields.values())
        described["requestBody"] = {"required": is_required, "content": content}
    if operation.is_signed:
        described["security"] = [{"token": []}, {}]
    return described


def _head(described: dict[str, Any]) -> dict[str, Any]:
    """Return the description of HEAD, which has no ranges, beside that of GET."""
    ranges = {"206", "416"}
    answers = {status: answer for status, answer in described["responses"].items() if status not in ranges}
    return {
        **described,
        "operationId": described["operationId"].replace("get_", "head_", 1),
        "summary": "Return the headers of the file",
        "parameters": [each for each in described["parameters"] if "Range" not in each["name"]],
        "responses": without_content(answers),
    }


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    text = {"schema": {"type": "string"}}
    for name in operation.path_parameters:
        own = f"{name} of {operation.subject}"
        meaning = _IDS.get(own, _IDS[operation.subject])
        yield {"name": name, "in": "path", "required": True, "description": meaning, **text}
    for name, declared in operation.parameters.items():
        described = {key: value for key, value in declared.items() if key != "choices"}
        yield {"name": name, "in": "query", **text, **described}
    tagged = ["If-None-Match"] if operation.has_tag and operation.method == "GET" else []
    conditional = ["If-Match"] if operation.is_conditional else []
    repeatable = ["Idempotency-Key"] if operation.method == "POST" else []
    for name in (*operation.headers, *tagged, *conditional, *repeatable):
        yield {"name": name, "in": "header", "description": _HEADERS[name], **text}


def _success(operation: Operation, names: dict[Any, Any]) -> dict[str, Any]:
    """Return the responses of a success, by status."""
    if operation.status == HTTPStatus.NO_CONTENT:
        return {"204": {"description": "Done."}}
    if operation.is_file:
        schema = {"type": "string", "format": "binary"}
        content = {kind: {"schema": schema} for kind in operation.media_types}
        return {
            "200": {"description": "The file.", "headers": FILE_HEADERS, "content": content},
            "206": {
                "description": "A range of the file.",
                "headers": {**FILE_HEADERS, **CONTENT_RANGE},
                "content": content,
            },
            "304": {"description": "The client has this file.", "headers": FILE_HEADERS},
        }
    if operation.answer is not None:
        schema = names[operation.answer, "serialization"]
    else:
        is_binary = operation.media_types == (BINARY,)
        schema = {"type": "string", **({"format": "binary"} if is_binary else {})}
    content = {kind: {"schema": schema} for kind in operation.media_types}
    headers = {
        **(ETAG if operation.has_tag else {}),
        **(LINK if operation.answer is not None and issubclass(operation.answer, Page) else {}),
        **(LOCATION if operation.location is not None else {}),
        **(REPLAYED if operation.method == "POST" else {}),
    }
    described = {"description": "Success.", **({"headers": headers} if headers else {}), "content": content}
    unchanged = {"304": {"description": "The client has this answer.", "headers": ETAG}}
    return {
        str(operation.status): described,
        **(unchanged if operation.has_tag and operation.method == "GET" else {}),
    }
