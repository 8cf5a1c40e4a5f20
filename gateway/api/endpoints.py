"""What all answers of the API share: JSON, a Bearer token, and errors as `{error, detail}`."""

import json
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Mount, Route

from gateway.api.auth import AdminToken, TooManyTries, WrongToken
from gateway.api.query import refuse_nul, refuse_unknown
from gateway.api.schemas import Error
from gateway.errors import (
    Conflict,
    Invalid,
    NotAllowed,
    NotFound,
    PushgateError,
    SettingError,
    StoreUnavailable,
)
from gateway.intake.body import BodyReader, Disconnected, TooLarge, TooMuch, TooSlow
from gateway.text.escape import storable
from gateway.text.validation import describe

Endpoint = Callable[[Request], Awaitable[Response]]
Answering = Callable[[Request], Awaitable[BaseModel | Response]]
"""An endpoint that returns a model, to be answered as JSON, or a complete response."""
Model = TypeVar("Model", bound=BaseModel)

_STATUS: dict[type[PushgateError], tuple[int, str]] = {
    NotFound: (404, "not found"),
    Invalid: (422, "invalid"),
    NotAllowed: (403, "not allowed"),
    Conflict: (409, "conflict"),
    StoreUnavailable: (503, "try again"),
    SettingError: (500, "misconfigured"),
    TooLarge: (413, "body too large"),
    TooSlow: (408, "body too slow"),
    TooMuch: (503, "try again"),
    WrongToken: (401, "not signed in"),
    TooManyTries: (429, "too many tries"),
    Disconnected: (400, "disconnected"),
}

bodies = BodyReader(limit=1024 * 1024)


def problem(status: int, error: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error response."""
    return JSONResponse(Error(error=error, detail=detail).model_dump(), status, headers)


async def read(request: Request, model: type[Model]) -> Model:
    """Read a JSON body. Raises `Invalid`, which names the wrong field but never its value."""
    body = await bodies.read(request.scope, request.receive)
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise Invalid(describe(error, model)) from None


def answering(endpoint: Answering, status: int, query: Sequence[str]) -> Endpoint:
    """Return the endpoint with a check of its query parameters and JSON answers with this status."""

    async def answered(request: Request) -> Response:
        refuse_nul(request)
        refuse_unknown(request, query)
        given = await endpoint(request)
        if isinstance(given, Response):
            return given
        return Response(_json(given), status, media_type="application/json")

    return answered


def guarded(endpoint: Endpoint, token: AdminToken) -> Endpoint:
    """Return the endpoint with a check of the Bearer token."""

    async def checked(request: Request) -> Response:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        detail = "send the header Authorization: Bearer TOKEN with the admin token"
        if scheme.lower() != "bearer" or not given.strip():
            return problem(401, "not signed in", detail, {"www-authenticate": "Bearer"})
        try:
            token.check(request, given.strip())
        except WrongToken as error:
            return problem(401, "not signed in", f"{error}: {detail}", {"www-authenticate": "Bearer"})
        return await endpoint(request)

    return checked


def unless_signed(endpoint: Endpoint, checked: Endpoint) -> Endpoint:
    """Return `checked`, but the endpoint itself for URLs with a signature, which it checks."""

    async def either(request: Request) -> Response:
        return await (endpoint if "signature" in request.query_params else checked)(request)

    return either


def status_of(error: Exception) -> tuple[int, str]:
    """Return the status and the title of a Pushgate error. Raises any other error."""
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    raise error


async def on_error(_request: Request, error: Exception) -> Response:
    """Answer a Pushgate error."""
    status, title = status_of(error)
    return problem(status, title, str(error), retry_after(error))


def retry_after(error: Exception) -> dict[str, str]:
    """Return the Retry-After header, where a retry may help."""
    if isinstance(error, TooManyTries):
        return {"retry-after": str(error.seconds)}
    return {"retry-after": "5"} if status_of(error)[0] == HTTPStatus.SERVICE_UNAVAILABLE else {}


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer an error of the routing: an unknown path or a wrong method."""
    if not isinstance(error, HTTPException):
        raise error
    return problem(error.status_code, error.detail.lower(), error.detail, headers_of_refusal(request, error))


def headers_of_refusal(request: Request, error: HTTPException) -> dict[str, str]:
    """Return the headers of a routing error, with all allowed methods."""
    headers = dict(error.headers or {})
    # A mounted application names its methods itself.
    is_mounted = isinstance(request.scope.get("route"), Mount)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and not is_mounted:
        headers["Allow"] = ", ".join(_allowed(request))
    return headers


def _allowed(request: Request) -> list[str]:
    """Return the methods of all routes with the request's path; Starlette returns only the first route's."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    fitting = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in fitting for method in route.methods or ()})


async def on_bug(_request: Request, _error: Exception) -> Response:
    """Answer an unexpected error; the log contains the traceback."""
    return problem(500, "internal error", "see the gateway's log")


def sse(*, event: str, event_id: str, data: BaseModel) -> bytes:
    """Return one server-sent event: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"id: {event_id}\nevent: {event}\ndata: {_json(data)}\n\n".encode()


def _json(model: BaseModel) -> str:
    """Return a model as JSON. A string that cannot be encoded must not fail the rest of a page."""
    try:
        return model.model_dump_json()
    except PydanticSerializationError:
        return json.dumps(storable(model.model_dump(mode="json")))
