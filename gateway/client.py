"""The command line's side of the REST API: requests over HTTP, answers as plain JSON, errors as sentences."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import ProxyHandler, Request, build_opener

from gateway.errors import PushgateError
from gateway.outgoing import BROKEN_OFF, NoRedirects, reason

_SECONDS = 30.0
# The most that a page of the API may have.
_PAGE = 200


class ApiError(PushgateError):
    """The gateway could not be asked, or refused."""


# An admin token goes to the named address, not by way of a proxy that the environment happens to name.
_opener = build_opener(NoRedirects(), ProxyHandler({}))


class Client:
    """Talks to one gateway."""

    def __init__(self, url: str, token: str) -> None:
        """`url` is what the gateway's addresses begin with, such as http://127.0.0.1:8080."""
        if not url.startswith(("http://", "https://")):
            raise ApiError(f"{url} is not the address of a gateway: it begins with http:// or https://")
        self._url = url.rstrip("/")
        self._headers = {
            "authorization": f"Bearer {token}",
            "accept": "application/json",
            "content-type": "application/json",
        }

    def get(self, path: str, **query: str | int | None) -> Any:
        """Return the answer to a GET; parts of the query that are None are left out."""
        return self._ask("GET", path + _query(query))

    def items(self, path: str, **query: str | int | None) -> Iterator[Any]:
        """Yield the items of a list, page after page."""
        cursor = None
        while True:
            page = self.get(path, limit=_PAGE, cursor=cursor, **query)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str | int | None
    ) -> Any:
        """Return the answer to a request with a JSON body; parts of the query that are None are left out."""
        return self._ask(method, path + _query(query), json.dumps(body or {}).encode())

    def executions(self) -> Iterator[Any]:
        """Yield execution requests as they are planned, until interrupted."""
        with self._open("GET", "/executions/stream", None, None) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        with self._open(method, path, body, _SECONDS) as answer:
            text = answer.read()
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise ApiError(f"what answers at {self._url} is no gateway: is its address right?") from None

    @contextmanager
    def _open(self, method: str, path: str, body: bytes | None, timeout: float | None) -> Iterator[Any]:
        """Give the answer; what goes wrong with it, also while it is read, is one sentence."""
        try:
            request = Request(f"{self._url}/api/v1{path}", body, self._headers, method=method)  # noqa: S310
            answer = _opener.open(request, timeout=timeout)
        except HTTPError as error:
            with error:
                detail = _json(error.read()).get("detail")
            raise ApiError(detail or f"the gateway answered {error.code}") from error
        except BROKEN_OFF as error:
            raise self._broken_off(error) from error
        except ValueError:
            # Not with its cause, which may show the token.
            raise ApiError(
                f"the gateway at {self._url} cannot be asked: its address, or the admin token, holds what no"
                " request can"
            ) from None
        with answer:
            try:
                yield answer
            except BROKEN_OFF as error:
                raise self._broken_off(error) from error

    def _broken_off(self, error: Exception) -> ApiError:
        return ApiError(
            f"the gateway at {self._url} cannot be reached: {reason(error)}. Is `pushgate serve` running?"
        )


def _query(query: Mapping[str, str | int | None]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"?{urlencode(given, errors='replace')}" if given else ""


def part(identifier: str) -> str:
    """Return an id as a part of a path."""
    return quote(identifier, safe="", errors="replace")


def post_webhook(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, Any]]:
    """Post a delivery as a provider would; return the status and the answer, whatever it is."""
    if not url.startswith(("http://", "https://")):
        raise ApiError(f"{url} is not a webhook URL: it begins with http:// or https://")
    try:
        request = Request(url, data=body, headers=dict(headers), method="POST")  # noqa: S310 - checked above
        with _opener.open(request, timeout=_SECONDS) as answer:
            return answer.status, _json(answer.read())
    except HTTPError as error:
        with error:
            return error.code, _json(error.read())
    except BROKEN_OFF as error:
        raise ApiError(f"{url} cannot be reached: {reason(error)}") from error
    except ValueError as error:
        raise ApiError(f"{url} cannot be asked so: its address or a header holds what none can") from error


def _json(text: bytes) -> Mapping[str, Any]:
    """Return the object that an answer is; what is none, and so not ours, is told as its detail."""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    return told if isinstance(told, dict) else {"detail": text.decode("utf-8", "replace")[:200]}
