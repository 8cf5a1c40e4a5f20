"""The operations of the REST API, each declared once for the routing and the OpenAPI document.

https://spec.openapis.org/oas/v3.1.1.html
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.routing import Route

from gateway.api.auth import AdminToken
from gateway.api.endpoints import Answering, answering, guarded
from gateway.store.deliveries import Verdict
from gateway.store.executions import ExecutionState

_BASE = "/api/v1"
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "detail": {"type": "string"}},
    "required": ["error", "detail"],
}
_QUERY: dict[str, dict[str, Any]] = {
    "connection": {"description": "only records of this connection, by its id or name"},
    "name": {"description": "only connections with exactly this name"},
    "delivery": {"description": "only requests of this delivery, by its id"},
    "verdict": {"description": "only deliveries with this verdict", "schema": {"enum": [*get_args(Verdict)]}},
    "state": {"description": "only requests in this state", "schema": {"enum": [*get_args(ExecutionState)]}},
    "commit": {
        "description": "an object id or its beginning: only deliveries that moved a ref to it, or to its tag",
        "schema": {"type": "string", "pattern": "^[0-9a-fA-F]{7,64}$"},
    },
    "since": {
        "description": "only deliveries received since then",
        "schema": {"type": "string", "format": "date-time"},
    },
    "what": {
        "required": True,
        "description": "the id of a delivery or execution, a commit or its beginning, or a URL",
    },
    "format": {
        "description": "the format of the package file",
        "schema": {"enum": ["tar.gz", "tar.zst"], "default": "tar.gz"},
    },
    "expires": {"description": "of the signed URL that a request's `package` names"},
    "signature": {"description": "of the signed URL that a request's `package` names"},
    "limit": {
        "description": "the maximum number of items",
        "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
    },
    "cursor": {"description": "the `next` of the previous page"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of the REST API, and its endpoint.

    `status` is the status of a successful answer, `media_types` its content types. `body` is the model of the
    request's body; `query` and `headers` are the parameters that the endpoint reads. An endpoint with
    `is_open` checks the authorization itself.
    """

    method: str
    path: str
    endpoint: Answering
    status: int = 200
    body: type[BaseModel] | None = None
    query: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    media_types: tuple[str, ...] = ("application/json",)
    is_open: bool = False

    def route(self, token: AdminToken) -> Route:
        """Return the route, with the check of the token."""
        endpoint = answering(self.endpoint, self.status, self.query)
        return Route(
            _BASE + self.path,
            endpoint if self.is_open else guarded(endpoint, token),
            methods=[self.method],
        )

    @property
    def answer(self) -> type[BaseModel] | None:
        """The model that the endpoint returns; None where it returns a response."""
        given = get_type_hints(self.endpoint)["return"]
        return given if issubclass(given, BaseModel) else None


def document(operations: Sequence[Operation], *, version: str) -> dict[str, Any]:
    """Return the OpenAPI document of these operations."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]]
    models = [(each.answer, "serialization") for each in operations if each.answer is not None]
    models += [(each.body, "validation") for each in operations if each.body is not None]
    names, shapes = models_json_schema(models, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _described(operation, names)
        paths.setdefault(_BASE + operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Pushgate",
            "version": version,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {**shapes["$defs"], "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _described(operation: Operation, names: dict[Any, Any]) -> dict[str, Any]:
    summary = " ".join((operation.endpoint.__doc__ or "").partition("\n\n")[0].split())
    described: dict[str, Any] = {
        "operationId": getattr(operation.endpoint, "__name__", operation.path),
        "summary": summary.partition("`: ")[2] or summary,
        "parameters": list(_parameters(operation)),
        "responses": {
            str(operation.status): _answer(operation, names),
            "default": {
                "description": "an error: what is wrong, and what to do",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if operation.body is not None:
        content = {"application/json": {"schema": names[operation.body, "validation"]}}
        is_required = any(field.is_required() for field in operation.body.model_fields.values())
        described["requestBody"] = {"required": is_required, "content": content}
    if operation.is_open:
        described["security"] = [{"token": []}, {}]
    return described


def _parameters(operation: Operation) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", operation.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for name in operation.query:
        yield {"name": name, "in": "query", "schema": {"type": "string"}, **_QUERY[name]}
    for name in operation.headers:
        yield {"name": name, "in": "header", "schema": {"type": "string"}}


def _answer(operation: Operation, names: dict[Any, Any]) -> dict[str, Any]:
    if operation.status == HTTPStatus.NO_CONTENT:
        return {"description": "done"}
    schema = {"type": "string"} if operation.answer is None else names[operation.answer, "serialization"]
    return {
        "description": "success",
        "content": {kind: {"schema": schema} for kind in operation.media_types},
    }
