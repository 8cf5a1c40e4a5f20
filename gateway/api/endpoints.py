"""What all operations of the API share: JSON, a Bearer token, and checks of what a client sends."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount, Route

from gateway.api.auth import AdminToken, WrongToken
from gateway.api.conditions import is_known, tag_of
from gateway.api.problems import KINDS, NOT_SIGNED_IN, fault_of, problem, untyped
from gateway.api.query import faults_of_url, link_to_next
from gateway.api.repeated_fields import repeated_fields
from gateway.api.schemas import NoFields
from gateway.errors import Fault, Invalid, NotFound
from gateway.intake.body import BodyReader
from gateway.text.escape import storable
from gateway.text.validation import faults

Endpoint = Callable[[Request], Awaitable[Response]]
Answering = Callable[[Request], Awaitable[BaseModel | Response]]
"""An endpoint that returns a model, to be answered as JSON, or a complete response."""
Model = TypeVar("Model", bound=BaseModel)

_SAFE = {"GET", "HEAD"}
_SHOWS_RECORD = {"GET", "HEAD", "PATCH"}

bodies = BodyReader(limit=1024 * 1024)


async def read(request: Request, model: type[Model]) -> Model:
    """Read a JSON body. Raises `Invalid` with everything that is wrong, but never with a value."""
    found = _read(await bodies.read(request.scope, request.receive), model)
    if isinstance(found, list):
        raise Invalid.of(found)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What an operation answers, and what it accepts.

    `query` are the declarations of its query parameters, `location` is the path of the resource that it makes
    or changes, with a field of the answer in braces.
    """

    endpoint: Answering
    status: int
    query: Mapping[str, Any]
    body: type[BaseModel] | None
    location: str | None

    async def __call__(self, request: Request) -> Response:
        """Check a request and answer it."""
        wrong = faults_of_url(request, self.query)
        if request.method not in _SAFE and (wrong or self.body is None):
            content = await bodies.read(request.scope, request.receive)
            found = _read(content, self.body or NoFields)
            wrong += found if isinstance(found, list) else []
        if wrong:
            raise Invalid.of(wrong)
        try:
            given = await self.endpoint(request)
        except Invalid as error:
            error.faults = error.faults or fault_of(str(error), self.body)
            raise
        answer = given if isinstance(given, Response) else self._answer(request, given)
        return _without_content(answer) if request.method == "HEAD" else answer

    def _answer(self, request: Request, given: BaseModel) -> Response:
        content, headers = _json(given).encode(), dict[str, str]()
        if request.method in _SHOWS_RECORD:
            headers["etag"] = tag_of(given, content)
            if request.method in _SAFE and is_known(request, headers["etag"]):
                return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        headers |= link_to_next(request, given)
        fields = {name: getattr(given, name) for name in type(given).model_fields}
        if self.location is not None and fields[_field(self.location)] is not None:
            headers["location"] = self.location.format_map(fields)
        return Response(content, self.status, headers, media_type="application/json")


def guarded(endpoint: Endpoint, token: AdminToken) -> Endpoint:
    """Return the endpoint with a check of the Bearer token."""

    async def checked(request: Request) -> Response:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        detail = "send the header Authorization: Bearer TOKEN with the admin token"
        if scheme.lower() != "bearer" or not given.strip():
            return problem(NOT_SIGNED_IN, detail, {"www-authenticate": "Bearer"})
        try:
            token.check(request, given.strip())
        except WrongToken as error:
            return problem(NOT_SIGNED_IN, f"{error}: {detail}", {"www-authenticate": "Bearer"})
        return await endpoint(request)

    return checked


def unless_signed(endpoint: Endpoint, checked: Endpoint) -> Endpoint:
    """Return `checked`, but the endpoint itself for URLs with a signature, which it checks."""

    async def either(request: Request) -> Response:
        return await (endpoint if "signature" in request.query_params else checked)(request)

    return either


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer an error of the routing: an unknown path or a wrong method. Answer OPTIONS."""
    if not isinstance(error, HTTPException):
        raise error
    headers = headers_of_refusal(request, error)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return problem(KINDS[NotFound], f"nothing is at the path {request.url.path}", headers)
    if error.status_code != HTTPStatus.METHOD_NOT_ALLOWED:
        return untyped(error.status_code, error.detail.capitalize(), error.detail, headers)
    if request.method == "OPTIONS":
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)
    return untyped(405, "Method not allowed", f"the methods of this path are {headers['Allow']}", headers)


def headers_of_refusal(request: Request, error: HTTPException) -> dict[str, str]:
    """Return the headers of a routing error, with all allowed methods."""
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # A mounted application serves files.
        is_mounted = isinstance(request.scope.get("route"), Mount)
        allowed = _SAFE if is_mounted else _allowed(request)
        headers["Allow"] = ", ".join(sorted({*allowed, "OPTIONS"}))
    return headers


def _allowed(request: Request) -> set[str]:
    """Return the methods of all routes with the request's path; Starlette returns only the first route's."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in fitting for method in route.methods or ()}


def sse(*, event: str, event_id: str, data: BaseModel) -> bytes:
    """Return one server-sent event: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"id: {event_id}\nevent: {event}\ndata: {_json(data)}\n\n".encode()


def _read(content: bytes, model: type[Model]) -> Model | list[Fault]:
    """Return the model in a body, or everything that is wrong with it."""
    try:
        found = model.model_validate_json(content or b"{}")
    except ValidationError as error:
        return [*faults(error, model), *repeated_fields(content)]
    return list(repeated_fields(content)) or found


def _without_content(answer: Response) -> Response:
    """Return the answer to HEAD: the headers of the answer to GET."""
    bare = Response(status_code=answer.status_code)
    bare.raw_headers = answer.raw_headers
    return bare


def _field(location: str) -> str:
    return location.partition("{")[2].partition("}")[0]


def _json(model: BaseModel) -> str:
    """Return a model as JSON. A string that cannot be encoded must not fail the rest of a page."""
    try:
        return model.model_dump_json()
    except PydanticSerializationError:
        return json.dumps(storable(model.model_dump(mode="json")))
