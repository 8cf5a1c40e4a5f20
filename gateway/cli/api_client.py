"""The client of the REST API: HTTP requests, answers as plain JSON, errors as sentences."""

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import ProxyHandler, Request, build_opener

from gateway.backoff import backoff
from gateway.errors import PushgateError
from gateway.http_client import BROKEN_OFF, NoRedirects, reason

_REQUEST_TIMEOUT = 30.0
# The largest page that the API allows.
_PAGE = 200
# A stream sends a comment about every 15 seconds.
_STREAM_TIMEOUT = 60.0
_START_TIMEOUT = 60.0
_PAUSE = 0.5
_LONGEST_PAUSE = 10.0
_AWAY = (502, 503, 504)

T = TypeVar("T")


class ApiError(PushgateError):
    """The gateway could not be reached, or refused the request.

    `gateway` names the gateway and what has chosen it; None if the message does.
    """

    def __init__(self, message: str, gateway: str | None = None) -> None:
        """Take a sentence, and what names the gateway."""
        super().__init__(message)
        self.gateway = gateway


class Missing(ApiError):
    """Nothing has the id or the name in the path."""


class Unreachable(ApiError):
    """The gateway does not answer, or its answer ended too early."""


class Patience:
    """Waits longer and longer between attempts to reach a server, and gives up after a time.

    `report` is called once when the server is away, with the reason, and once when it is back.
    """

    def __init__(self, server: str, report: Callable[[str], None], seconds: float = _START_TIMEOUT) -> None:
        """Take the server's name, and the seconds of silence after which nothing is tried any more."""
        self._server = server
        self._report = report
        self._seconds = seconds
        self._heard_at: float | None = None
        self._failures = 0

    def heard(self) -> None:
        """Note that the server has answered."""
        self._heard_at = time.monotonic()
        if self._failures:
            self._report(f"{self._server} answers again.")
        self._failures = 0

    def wait(self, error: Unreachable) -> None:
        """Wait before the next attempt. Raises `error` if the server has never answered, or not for long."""
        if self._heard_at is None or time.monotonic() - self._heard_at > self._seconds:
            raise error
        if not self._failures:
            self._report(f"{error} Reconnecting …")
        time.sleep(backoff(self._failures, first=_PAUSE, longest=_LONGEST_PAUSE))
        self._failures += 1

    def insist(self, read: Callable[[], T]) -> T:
        """Return what `read` returns, as soon as the server answers."""
        while True:
            try:
                found = read()
            except Unreachable as error:
                self.wait(error)
            else:
                self.heard()
                return found


# An admin token goes directly to the given address, never through a proxy named in the environment.
_opener = build_opener(NoRedirects(), ProxyHandler({}))


class Client:
    """A client of one gateway."""

    def __init__(
        self, url: str, token: str, *, origin: str | None = None, token_origin: str | None = None
    ) -> None:
        """Take the base URL of the gateway, such as http://127.0.0.1:8080, and what has chosen both."""
        self._token_from = f" of {token_origin}" if token_origin is not None else ""
        self._from = f" (from {origin})" if origin is not None else ""
        if not url.startswith(("http://", "https://")):
            raise ApiError(
                f"{url}{self._from} is not the URL of a gateway: it must begin with http:// or https://"
            )
        self._url = url.rstrip("/")
        self._headers = {
            "authorization": f"Bearer {token}",
            "accept": "application/json",
            "content-type": "application/json",
        }

    def get(self, path: str, **query: str | int | None) -> Any:
        """Return the answer to a GET; parts of the query that are None are left out."""
        return self._request("GET", path + _query(query))

    @property
    def url(self) -> str:
        """The base URL of the gateway."""
        return self._url

    @property
    def named(self) -> str:
        """The URL of the gateway, with what has chosen it."""
        return f"{self._url}{self._from}"

    def raw(self, path: str) -> bytes:
        """Return the body of the answer to a GET."""
        with self._open("GET", path, None, _REQUEST_TIMEOUT) as answer:
            return bytes(answer.read())

    def root(self, path: str) -> tuple[int, str]:
        """Return the status and the text of an answer outside the API, of any status. No token is sent."""
        try:
            with _opener.open(f"{self._url}{path}", timeout=_REQUEST_TIMEOUT) as answer:
                return answer.status, answer.read().decode("utf-8", "replace")
        except HTTPError as error:
            with error:
                return error.code, error.read().decode("utf-8", "replace")
        except BROKEN_OFF as error:
            raise self._broken_off(error) from error
        except ValueError:
            raise ApiError(f"cannot send a request to {self._url}: it is not a valid URL") from None

    def root_json(self, path: str) -> tuple[int, Mapping[str, Any]]:
        """Return the status and the JSON object of an answer outside the API, of any status."""
        code, text = self.root(path)
        return code, _json(text.encode())

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
        return self._request(method, path + _query(query), json.dumps(body or {}).encode())

    def executions(
        self, *, report: Callable[[str], None], patience: float = _START_TIMEOUT
    ) -> Iterator[tuple[str, Any]]:
        """Yield execution requests as they are planned, and as runners report, until interrupted.

        Each comes with the name of its event: `execution` for a new one, `state` for a report.

        When the gateway ends the stream, such as at a restart, `report` is called with the reason, the
        stream resumes where it ended, and `report` is called again. Raises `ApiError` when that fails for
        `patience` seconds.
        """
        seen: str | None = None
        waiting = Patience(f"the gateway at {self.named}", report, patience)
        while True:
            event: dict[str, str] = {}
            try:
                with self._open(
                    "GET", "/executions/stream", None, _STREAM_TIMEOUT, last_event=seen
                ) as answer:
                    for line in answer:
                        waiting.heard()
                        name, _, value = line.decode().rstrip("\r\n").partition(": ")
                        if name:
                            event[name] = value
                            continue
                        # An event ends with an empty line: an event that is cut off earlier is sent again.
                        if "data" in event:
                            yield event.get("event", ""), json.loads(event["data"])
                        seen = event.get("id", seen)
                        event = {}
            except Unreachable as error:
                waiting.wait(error)
            else:
                waiting.wait(Unreachable(f"the gateway at {self.named} ended the stream."))

    def _request(self, method: str, path: str, body: bytes | None = None) -> Any:
        with self._open(method, path, body, _REQUEST_TIMEOUT) as answer:
            text = answer.read()
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise self._not_a_gateway() from None

    @contextmanager
    def _open(
        self, method: str, path: str, body: bytes | None, timeout: float, *, last_event: str | None = None
    ) -> Iterator[Any]:
        """Yield the answer; turn every error, also while it is read, into one sentence."""
        headers = {**self._headers, **({"last-event-id": last_event} if last_event else {})}
        try:
            request = Request(f"{self._url}/api/v1{path}", body, headers, method=method)  # noqa: S310
            answer = _opener.open(request, timeout=timeout)
        except HTTPError as error:
            with error:
                raise self._refusal(error.code, error.read()) from error
        except BROKEN_OFF as error:
            raise self._broken_off(error) from error
        except ValueError:
            # Without its cause, which may contain the token.
            raise ApiError(
                f"cannot send a request to {self.named}: the URL or the admin token contains"
                " characters that HTTP does not allow"
            ) from None
        with answer:
            try:
                yield answer
            except BROKEN_OFF as error:
                raise self._broken_off(error) from error

    def _refusal(self, status: int, body: bytes) -> ApiError:
        """Return the error of an answer: the gateway's own sentence, or that of another server."""
        sentence = _problem(_object(body) or {})
        # A 502 to 504 comes from a proxy, or from a gateway whose database is unavailable.
        if status in _AWAY:
            return Unreachable(sentence or f"the gateway answered {status}", self.named)
        if sentence is None:
            return self._not_a_gateway(status)
        if status == HTTPStatus.UNAUTHORIZED:
            sentence = (
                f"the gateway does not accept the admin token{self._token_from}: sign in with `pushgate login"
                " URL`, or set PUSHGATE_ADMIN_TOKEN to the output of `pushgate keys token` on its machine"
            )
        kind = Missing if status == HTTPStatus.NOT_FOUND else ApiError
        return kind(sentence, self.named)

    def _not_a_gateway(self, status: int | None = None) -> ApiError:
        answered = f", it answered {status}" if status is not None else ""
        return ApiError(f"the server at {self.named} is not a gateway{answered}: check its URL")

    def _broken_off(self, error: Exception) -> "Unreachable":
        advice = "Is `pushgate serve` running?"
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            advice = "If its certificate comes from your own authority, set SSL_CERT_FILE."
        return Unreachable(f"cannot reach the gateway at {self.named}: {reason(error)}. {advice}")


def _query(query: Mapping[str, str | int | None]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"?{urlencode(given, errors='replace')}" if given else ""


def _problem(answer: Mapping[str, Any]) -> str | None:
    """Return the sentence of an error, or each mistake in the request on a line of its own."""
    more = [str(one.get("detail")) for one in answer.get("errors", ())]
    return "\n  ".join(more) if len(more) > 1 else answer.get("detail")


def part(identifier: str) -> str:
    """Return an id as a part of a path. Raises `Missing` for text that would be another path."""
    if "/" in identifier or identifier in {"", ".", ".."}:
        raise Missing(f"nothing has the id {identifier!r}: give the id as the lists show it")
    return quote(identifier, safe="", errors="replace")


def post_webhook(url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Mapping[str, Any]]:
    """Post a delivery as a provider would; return the status and the answer, of any status."""
    if not url.startswith(("http://", "https://")):
        raise ApiError(f"{url} is not a webhook URL: it must begin with http:// or https://")
    try:
        request = Request(url, data=body, headers=dict(headers), method="POST")  # noqa: S310 - checked above
        with _opener.open(request, timeout=_REQUEST_TIMEOUT) as answer:
            return answer.status, _json(answer.read())
    except HTTPError as error:
        with error:
            return error.code, _json(error.read())
    except BROKEN_OFF as error:
        raise Unreachable(f"cannot reach {url}: {reason(error)}") from error
    except ValueError as error:
        raise ApiError(
            f"cannot send a request to {url}: the URL or a header contains characters that HTTP does not"
            " allow"
        ) from error


def _json(text: bytes) -> Mapping[str, Any]:
    """Return the JSON object of an answer; text that is not a JSON object becomes the detail of an error."""
    answer = _object(text)
    return answer if answer is not None else {"detail": text.decode("utf-8", "replace")[:200]}


def _object(text: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object of an answer; None if it is not one."""
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
