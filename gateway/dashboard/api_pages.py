"""Pages about the REST API: every operation with a form that sends a request, and every kind of error.

They are made from the OpenAPI document. A form is sent to the dashboard, which carries out the operation for
the user who has signed in: neither the token nor a script is in the page.
"""

import json
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from gateway.api import openapi
from gateway.api.endpoints import Endpoint
from gateway.api.openapi import Operation
from gateway.api.problems import on_error, sections
from gateway.dashboard.forms import read_form
from gateway.dashboard.rendering import Renderer
from gateway.errors import NotFound, PushgateError

_MAX_FIELDS = 50
_REF = "#/components/schemas/"
_JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A request that was sent by a form, as a command, and its answer."""

    command: str
    status: int
    headers: Sequence[tuple[str, str]]
    body: str


class ApiPages:
    """The handlers. `token` is the admin token, which requests are sent with."""

    def __init__(
        self,
        operations: Sequence[Operation],
        carry_out: Callable[[Operation], Endpoint],
        *,
        renderer: Renderer,
        token: str,
    ) -> None:
        """Send requests to the endpoints that `carry_out` returns."""
        self._operations = {each.name: each for each in operations}
        self._carry_out = carry_out
        self._renderer = renderer
        self._token = token

    def table(self) -> list[tuple[str, str, Callable[[Request], Awaitable[Response]]]]:
        """Return the pages for users who have signed in: path, method, handler."""
        return [
            ("/docs/api", "GET", self.list_operations),
            ("/docs/api/{operation}", "GET", self.show_operation),
            ("/docs/api/{operation}", "POST", self.send),
        ]

    async def list_operations(self, _request: Request) -> Response:
        """`GET /docs/api`: list the operations by their subjects."""
        subjects = [
            (tag, [each for each in self._shown if each["subject"] == tag["name"]])
            for tag in self._document["tags"]
        ]
        return self._renderer.page("api.html", subjects=[each for each in subjects if each[1]])

    async def show_operation(self, request: Request) -> Response:
        """`GET /docs/api/{operation}`: show an operation with its form."""
        _, described = self._found(request)
        example = described["body"]["example"] if described["body"] else ""
        return self._page(described, {"body": example}, None)

    async def send(self, request: Request) -> Response:
        """`POST /docs/api/{operation}`: send a request, and show the answer below the form."""
        operation, described = self._found(request)
        given = await read_form(request, max_fields=_MAX_FIELDS)
        values = {
            place: {
                each["name"]: given[f"{place}-{each['name']}"]
                for each in described["parameters"]
                if each["in"] == place and given.get(f"{place}-{each['name']}")
            }
            for place in ("path", "query", "header")
        }
        path = described["path"].format_map(
            {name: quote(values["path"].get(name, ""), safe="") for name in operation.path_parameters}
        )
        target = f"{path}?{urlencode(values['query'])}" if values["query"] else path
        body = given.get("body", "")
        inner = self._request(request, operation.method, target, values, body)
        try:
            answer = await self._carry_out(operation)(inner)
        except PushgateError as error:
            answer = await on_error(inner, error)
        command = self._command(operation.method, target, values["header"], body)
        return self._page(described, given, _sent(command, answer))

    async def show_errors(self, _request: Request) -> Response:
        """`GET /docs/errors`: explain each kind of error; the `type` of a problem leads here."""
        return self._renderer.page("api-errors.html", kinds=sections())

    @cached_property
    def _document(self) -> dict[str, Any]:
        operations = list(self._operations.values())
        return openapi.document(operations, version=version("pushgate"), base_url=self._renderer.base_url)

    @cached_property
    def _shown(self) -> list[dict[str, Any]]:
        """What the pages show of each operation."""
        shapes = self._document["components"]["schemas"]
        return [
            _described(path, method, each, shapes)
            for path, item in self._document["paths"].items()
            for method, each in item.items()
            if each["operationId"] in self._operations
        ]

    def _found(self, request: Request) -> tuple[Operation, dict[str, Any]]:
        name = request.path_params["operation"]
        for described in self._shown:
            if described["id"] == name:
                return self._operations[name], described
        raise NotFound(f"the API has no operation {name}")

    def _request(
        self, request: Request, method: str, target: str, values: Mapping[str, Mapping[str, str]], body: str
    ) -> Request:
        """Return the request that a form describes, with the token."""
        path, _, query = target.partition("?")
        headers = {**values["header"], "authorization": f"Bearer {self._token}", "content-type": _JSON}
        scope = {
            **request.scope,
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "path_params": dict(values["path"]),
            "headers": [
                (name.lower().encode(), value.encode("latin-1", "replace")) for name, value in headers.items()
            ],
        }
        content = body.encode("utf-8", "replace")

        async def receive() -> Message:
            return {"type": "http.request", "body": content, "more_body": False}

        return Request({key: value for key, value in scope.items() if key != "state"}, receive)

    def _command(self, method: str, target: str, headers: Mapping[str, str], body: str) -> str:
        parts = [f"curl --request {method} {shlex.quote(self._renderer.base_url + target)}"]
        parts.append('--header "Authorization: Bearer $PUSHGATE_ADMIN_TOKEN"')
        parts += [f"--header {shlex.quote(f'{name}: {value}')}" for name, value in headers.items()]
        if body:
            parts += [f"--header 'Content-Type: {_JSON}'", f"--data {shlex.quote(body)}"]
        return " \\\n  ".join(parts)

    def _page(self, described: Mapping[str, Any], given: Mapping[str, str], sent: Sent | None) -> Response:
        return self._renderer.page("api-operation.html", operation=described, given=given, sent=sent)


def _described(
    path: str, method: str, operation: Mapping[str, Any], shapes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the pages show of an operation of the document."""
    success = next(each for status, each in operation["responses"].items() if status.startswith("2"))
    return {
        "id": operation["operationId"],
        "method": method.upper(),
        "path": path,
        "subject": operation["tags"][0],
        "summary": operation["summary"],
        "description": operation.get("description"),
        "parameters": [
            {
                "required": False,
                "example": None,
                **each,
                "choices": _resolved(each["schema"], shapes).get("enum"),
            }
            for each in operation.get("parameters", ())
        ],
        "body": _body(operation.get("requestBody"), shapes),
        "statuses": [status for status in operation["responses"] if status.isdigit()],
        # A stream does not end, and a file is to be downloaded.
        "can_send": "content" not in success or set(success["content"]) == {_JSON},
    }


def _body(described: Mapping[str, Any] | None, shapes: Mapping[str, Any]) -> dict[str, Any] | None:
    if described is None:
        return None
    shape = _resolved(described["content"][_JSON]["schema"], shapes)
    required = shape.get("required", ())
    example = shape.get("examples", [{}])[0]
    return {
        "example": json.dumps(example, indent=2, ensure_ascii=False),
        "fields": [
            (
                name,
                each.get("description") or _resolved(each, shapes).get("description", ""),
                name in required,
            )
            for name, each in shape.get("properties", {}).items()
        ],
    }


def _resolved(schema: Mapping[str, Any], shapes: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = shapes[schema["$ref"].removeprefix(_REF)] if "$ref" in schema else schema
    return found


def _sent(command: str, answer: Response) -> Sent:
    text = bytes(answer.body).decode("utf-8", "replace")
    if text:
        text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.raw_headers]
    return Sent(command=command, status=answer.status_code, headers=headers, body=text)
