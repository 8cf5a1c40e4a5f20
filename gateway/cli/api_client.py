"""The command line's side of the REST API: requests over HTTP, answers as plain JSON, errors as sentences."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import ProxyHandler, Request, build_opener

from gateway.errors import PushgateError
from gateway.http_client import BROKEN_OFF, NoRedirects, reason

_REQUEST_TIMEOUT = 30.0
# The most that a page of the API may have.
_PAGE = 200
# A stream says every 15 seconds or so that it is still there.
_SILENCE = 60.0
_START_TIMEOUT = 60.0
_PAUSE = 0.5
_AWAY = (502, 503, 504)


class ApiError(PushgateError):
    """The gateway could not be asked, or refused."""


class Unreachable(ApiError):
    """The gateway does not answer, or its answer broke off."""


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

    def executions(
        self, *, interrupted: Callable[[str], None], patience: float = _START_TIMEOUT
    ) -> Iterator[Any]:
        """Yield execution requests as they are planned, until interrupted.

        Where the gateway ends the stream, as when it is restarted, `interrupted` is called with the reason,
        and the stream goes on where it ended. Raises `ApiError` where that fails for `patience` seconds.
        """
        seen: str | None = None
        last_heard: float | None = None
        while True:
            event: dict[str, str] = {}
            try:
                with self._open("GET", "/executions/stream", None, _SILENCE, last_event=seen) as answer:
                    for line in answer:
                        last_heard = time.monotonic()
                        name, _, value = line.decode().rstrip("\r\n").partition(": ")
                        if name:
                            event[name] = value
                            continue
                        # An event ends with an empty line: one that is cut off before that is sent again.
                        if "data" in event:
                            yield json.loads(event["data"])
                        seen = event.get("id", seen)
                        event = {}
                reason = f"the gateway at {self._url} has ended the stream."
            except Unreachable as error:
                if last_heard is None or time.monotonic() - last_heard > patience:
                    raise
                reason = str(error)
            interrupted(reason)
            time.sleep(_PAUSE)

    def _ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        with self._open(method, path, body, _REQUEST_TIMEOUT) as answer:
            text = answer.read()
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise ApiError(f"what answers at {self._url} is no gateway: is its address right?") from None

    @contextmanager
    def _open(
        self, method: str, path: str, body: bytes | None, timeout: float, *, last_event: str | None = None
    ) -> Iterator[Any]:
        """Give the answer; what goes wrong with it, also while it is read, is one sentence."""
        headers = {**self._headers, **({"last-event-id": last_event} if last_event else {})}
        try:
            request = Request(f"{self._url}/api/v1{path}", body, headers, method=method)  # noqa: S310
            answer = _opener.open(request, timeout=timeout)
        except HTTPError as error:
            with error:
                detail = _json(error.read()).get("detail")
            # A 502 to 504 is a proxy's, or that of a gateway whose database is away.
            kind = Unreachable if error.code in _AWAY else ApiError
            raise kind(detail or f"the gateway answered {error.code}") from error
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

    def _broken_off(self, error: Exception) -> "Unreachable":
        return Unreachable(
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
        with _opener.open(request, timeout=_REQUEST_TIMEOUT) as answer:
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
