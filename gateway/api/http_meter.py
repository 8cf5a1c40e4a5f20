"""Measures HTTP requests by the templates of their routes: paths have many values, and may hold secrets."""

import time

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.metrics import HTTP_SECONDS

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER = "other"


class HttpMeter:
    """An ASGI application that measures how long another one takes to begin each answer.

    Not to end it: some answers last as long as their client wants, and a slow client delays any.
    """

    def __init__(self, application: ASGIApp) -> None:
        """Pass all requests to `application`."""
        self._application = application
        # One for each route and class of status, so that the hot path looks up no labels.
        self._children: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        began_at = time.monotonic()

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._child(scope, message["status"]).observe(time.monotonic() - began_at)
            await send(message)

        await self._application(scope, receive, measured)

    def _child(self, scope: Scope, status: int) -> Histogram:
        # What matched the path; see `starlette.routing.Router`.
        route = scope.get("route")
        key = scope["method"], _OTHER if route is None else route.path, status // 100
        child = self._children.get(key)
        if child is None:
            method, template, kind = key
            method = method if method in _METHODS else _OTHER
            child = HTTP_SECONDS.labels(method, template, f"{kind}xx")
            if method != _OTHER:
                self._children[key] = child
        return child
