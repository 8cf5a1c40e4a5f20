"""Errors as pages for browsers, and as JSON for programs."""

import asyncio
import json

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.dashboard.error_pages import ErrorPages
from gateway.dashboard.rendering import Renderer
from gateway.errors import Conflict, Invalid, NotFound, PushgateError, StoreUnavailable

PAGES = ErrorPages(renderer=Renderer("http://127.0.0.1:8080", b"k" * 32))


def request(path: str, *, accept: str = "text/html", method: str = "GET") -> Request:
    """Return a request of a browser."""
    headers = [(b"accept", accept.encode())]
    return Request({"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""})


def text_of(answer: Response) -> str:
    """Return the page."""
    return bytes(answer.body).decode()


@pytest.mark.parametrize(
    ("error", "status", "advice"),
    [
        (NotFound("there is no delivery x"), 404, "The record may have been deleted"),
        (Invalid("limit must be a number"), 422, "Nothing was changed"),
        (Conflict("the name is taken"), 409, "load the page again"),
        (StoreUnavailable("the database does not answer"), 503, "This page loads again by itself"),
    ],
)
def test_an_error_is_a_page_with_what_to_do(error: PushgateError, status: int, advice: str) -> None:
    """With its sentence, and its status for programs."""
    answer = PAGES.of(error)
    assert answer.status_code == status
    assert str(error) in text_of(answer)
    assert advice in text_of(answer)
    # Only what passes by itself is requested again.
    assert ("data-live" in text_of(answer)) is (status == 503)


@pytest.mark.parametrize(("status", "advice"), [(404, "No page exists"), (405, "takes a form")])
def test_errors_of_the_routing_are_pages_too(status: int, advice: str) -> None:
    """For browsers; programs, and paths of the API, get JSON."""
    error = HTTPException(status, "Some detail")
    for asked, is_page in (
        (request("/nope"), True),
        (request("/nope", accept="*/*"), False),
        (request("/api/v1/nope"), False),
        (request("/hooks/nope"), False),
    ):
        asked.scope["app"] = type("App", (), {"routes": []})
        answer = asyncio.run(PAGES.on_http_error(asked, error))
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html") is is_page
        assert (advice in text_of(answer)) is is_page


def test_a_bug_is_a_page_without_its_details() -> None:
    """The log has them."""
    error = RuntimeError("a secret detail")
    page = asyncio.run(PAGES.on_bug(request("/"), error))
    assert (page.status_code, "secret detail" in text_of(page)) == (500, False)
    assert "This is a bug of Pushgate" in text_of(page)
    answer = asyncio.run(PAGES.on_bug(request("/api/v1/connections"), error))
    assert json.loads(text_of(answer))["status"] == 500
