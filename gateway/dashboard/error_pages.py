"""Errors as pages for browsers: what happened, and what to do. Programs get JSON, as the API answers."""

from dataclasses import dataclass
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.endpoints import headers_of_refusal, on_http_error
from gateway.api.problems import INTERNAL_ERROR, kind_of, on_bug, retry_after
from gateway.dashboard.rendering import Renderer
from gateway.errors import PushgateError

_NO_PAGE = "No page exists at this URL."
_ADVICE = {
    403: "If you sent the form from a page of Pushgate, open that page at the gateway's public URL, and send"
    " the form again.",
    404: "The record may have been deleted, or the URL may be mistyped. The search above finds names,"
    " branches, people and commits.",
    405: "This URL takes a form that another page sends. Open the page of the record, and use its buttons.",
    409: "Go back, load the page again, and see what has changed.",
    422: "Nothing was changed. Go back and correct the value.",
    429: "Wait, and try again.",
    500: "This is a bug of Pushgate. The gateway's log has an entry at this time: please report it.",
    503: "This page loads again by itself. Most providers send webhooks again that failed meanwhile, and"
    " reconciliation recovers the other pushes.",
}
"""What to do, by the status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorPages:
    """The pages that show errors."""

    renderer: Renderer

    def of(self, error: PushgateError) -> Response:
        """Return the page of an error of Pushgate. Raises any other error."""
        kind = kind_of(error)
        answer = self.failed(kind.status, kind.title, str(error))
        answer.headers.update(retry_after(error))
        return answer

    def failed(self, status: int, title: str, detail: str) -> Response:
        """Return a page with this status: `title` in a few words, `detail` in a sentence."""
        return self.renderer.page(
            "error.html",
            status,
            number=status,
            title=title,
            detail=detail,
            advice=_ADVICE.get(status),
            is_passing=status == HTTPStatus.SERVICE_UNAVAILABLE,
        )

    async def on_http_error(self, request: Request, error: Exception) -> Response:
        """Answer an error of the routing: a page for browsers, JSON for programs."""
        if not (isinstance(error, HTTPException) and is_for_browsers(request)):
            return await on_http_error(request, error)
        detail = _NO_PAGE if error.status_code == HTTPStatus.NOT_FOUND else error.detail
        answer = self.failed(error.status_code, error.detail, detail)
        answer.headers.update(headers_of_refusal(request, error))
        return answer

    async def on_bug(self, request: Request, error: Exception) -> Response:
        """Answer an unexpected error: a page for browsers, JSON for programs."""
        if not is_for_browsers(request):
            return await on_bug(request, error)
        return self.failed(
            INTERNAL_ERROR.status, INTERNAL_ERROR.title, "The gateway could not answer this request."
        )


def is_for_browsers(request: Request) -> bool:
    """Return whether a browser shows the answer; webhooks and the API always get JSON."""
    is_for_programs = request.url.path.startswith(("/api/", "/hooks/"))
    return (
        not is_for_programs
        and request.method != "OPTIONS"
        and "text/html" in request.headers.get("accept", "")
    )
