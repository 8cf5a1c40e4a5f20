"""The operations of the REST API, each told once: for the routing, and for the OpenAPI document.

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
    "connection": {"description": "only those of this connection, by its id or name"},
    "name": {"description": "only the connections with exactly this name"},
    "delivery": {"description": "only those of this delivery, by its id"},
    "verdict": {"description": "what was said to it", "schema": {"enum": [*get_args(Verdict)]}},
    "state": {"description": "how far it has come", "schema": {"enum": [*get_args(ExecutionState)]}},
    "commit": {
        "description": "an object id or its beginning: deliveries that moved a ref to it, or to a tag of it",
        "schema": {"type": "string", "pattern": "^[0-9a-fA-F]{7,64}$"},
    },
    "since": {
        "description": "only what was received since then",
        "schema": {"type": "string", "format": "date-time"},
    },
    "what": {
        "required": True,
        "description": "an id of a delivery or execution, a commit or its beginning, a page, or a URL",
    },
    "format": {
        "description": "of the package's file",
        "schema": {"enum": ["tar.gz", "tar.zst"], "default": "tar.gz"},
    },
    "expires": {"description": "of the signed URL that a request's `package` names"},
    "signature": {"description": "of the signed URL that a request's `package` names"},
    "limit": {
        "description": "how many at most",
        "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 50},
    },
    "cursor": {"description": "the `next` of the page before"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What can be asked of the REST API, and what answers.

    `status` is that of a model which the endpoint gives; `media_types` says as what it answers by itself.
    `body` is what a request's body is read as, `query` and `headers` what else is read of it. `is_open` says
    that the endpoint sees for itself who may ask.
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
        """Return the route, behind the token."""
        endpoint = answering(self.endpoint, self.status, self.query)
        return Route(
            _BASE + self.path,
            endpoint if self.is_open else guarded(endpoint, token),
            methods=[self.method],
        )

    @property
    def answer(self) -> type[BaseModel] | None:
        """The model that the endpoint gives; None where it answers by itself."""
        given = get_type_hints(self.endpoint)["return"]
        return given if issubclass(given, BaseModel) else None


def document(operations: Sequence[Operation], *, version: str) -> dict[str, Any]:
    """Return the OpenAPI document of these operations."""
    models: list[tuple[type[BaseModel], JsonSchemaMode]]
    models = [(one.answer, "serialization") for one in operations if one.answer is not None]
    models += [(one.body, "validation") for one in operations if one.body is not None]
    names, shapes = models_json_schema(models, ref_template="#/components/schemas/{model}")
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(_BASE + one.path, {})[one.method.lower()] = _told(one, names)
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


def _told(one: Operation, names: dict[Any, Any]) -> dict[str, Any]:
    summary = " ".join((one.endpoint.__doc__ or "").partition("\n\n")[0].split())
    told: dict[str, Any] = {
        "operationId": getattr(one.endpoint, "__name__", one.path),
        "summary": summary.partition("`: ")[2] or summary,
        "parameters": list(_parameters(one)),
        "responses": {
            str(one.status): _answer(one, names),
            "default": {
                "description": "what is wrong, and what to do",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if one.body is not None:
        content = {"application/json": {"schema": names[one.body, "validation"]}}
        is_required = any(field.is_required() for field in one.body.model_fields.values())
        told["requestBody"] = {"required": is_required, "content": content}
    if one.is_open:
        told["security"] = [{"token": []}, {}]
    return told


def _parameters(one: Operation) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", one.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for name in one.query:
        yield {"name": name, "in": "query", "schema": {"type": "string"}, **_QUERY[name]}
    for name in one.headers:
        yield {"name": name, "in": "header", "schema": {"type": "string"}}


def _answer(one: Operation, names: dict[Any, Any]) -> dict[str, Any]:
    if one.status == HTTPStatus.NO_CONTENT:
        return {"description": "done"}
    schema = {"type": "string"} if one.answer is None else names[one.answer, "serialization"]
    return {"description": "as asked", "content": {kind: {"schema": schema} for kind in one.media_types}}
