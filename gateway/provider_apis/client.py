"""Sends the requests of operations to a provider's API: the only I/O of this package."""

import os
import re
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus
from typing import Any, Protocol, cast
from urllib.parse import urljoin, urlsplit

import httpx2
from pydantic import BaseModel, ValidationError

from gateway.errors import RemoteUnavailable
from gateway.metrics import API_HOSTS, API_SECONDS, RATE_LIMIT_REMAINING, RATE_LIMITED
from gateway.provider_apis.budget import Budget
from gateway.provider_apis.operation import (
    ApiAnswer,
    ApiLimited,
    ApiRefused,
    ApiRequest,
    ApiUnavailable,
    Operation,
    T,
)
from gateway.threads import API

_TIMEOUT = httpx2.Timeout(15.0, connect=5.0)
_MAX_ANSWER_BYTES = 8 * 1024 * 1024
# An answer that names no time: GitHub's advice for its secondary limits.
# https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
_DEFAULT_WAIT = 60.0
_MAX_WAIT = 3600.0
_MAX_MESSAGE = 200
_LIMIT_PREFIXES = ("x-ratelimit", "ratelimit")
# The first word of Azure DevOps' refusal of a credential that is valid, but of somebody else.
_NOT_A_MEMBER = "TF400813"
# GitHub: “Resource protected by organization SAML enforcement. …”
_SECOND_FACTOR = re.compile(r"\bSAML\b|single sign.on|two.factor|\b2FA\b", re.IGNORECASE)


class Identity(Protocol):
    """What Pushgate is at a provider: the credential of API requests."""

    @property
    def name(self) -> str:
        """Return the name that errors show."""

    async def headers(self, *, renew: bool) -> Mapping[str, str]:
        """Return the headers of a request. With `renew`, the last credential was refused: obtain another."""


class Connector(Protocol):
    """Decides how a host is reached. `gateway.fetch.access.Access` is one."""

    async def checked_address(self, scheme: str, host: str, port: int) -> str | None:
        """Return the address to connect to, or None if a proxy resolves the host.

        Raise `RemoteUnavailable` for a host that has no address, or an address that is forbidden.
        """


class ApiClient:
    """A client of one API, at `base_url`, as one identity. Any number of tasks may use it at once."""

    def __init__(
        self,
        base_url: str,
        identity: Identity,
        *,
        http: httpx2.AsyncClient,
        connector: Connector,
        budget: Budget,
    ) -> None:
        """Send nothing yet."""
        self._base_url = base_url.rstrip("/")
        self._host = urlsplit(base_url).hostname or ""
        self._label = API_HOSTS.label(self._host)
        self._identity, self._http, self._connector, self._budget = identity, http, connector, budget

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation to its result. It may catch the refusal of one of its requests.

        Raise `ApiUnavailable` (or `ApiLimited`) if a retry may succeed, `ApiRefused` if it cannot.
        """
        try:
            request = next(operation)
            while True:
                try:
                    answer = await self._send(request)
                except ApiRefused as error:
                    request = operation.throw(error)
                else:
                    request = operation.send(answer)
        except StopIteration as done:
            return cast("T", done.value)
        finally:
            operation.close()

    async def _send(self, request: ApiRequest) -> ApiAnswer:
        answer = await self._send_once(request, renew=False)
        is_refused = answer.status == HTTPStatus.UNAUTHORIZED and not _is_signed_in(answer.headers)
        if is_refused and request.right:
            answer = await self._send_once(request, renew=True)
        self._obey_limits(answer)
        if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ApiUnavailable(f"{self._host} answered {answer.status}; try again later")
        if answer.status == HTTPStatus.NOT_FOUND and request.may_be_missing:
            return answer
        if answer.status >= HTTPStatus.BAD_REQUEST:
            raise self._refusal(request, answer)
        if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise self._redirect(request, answer)
        return answer

    async def _send_once(self, request: ApiRequest, *, renew: bool) -> ApiAnswer:
        self._budget.take(is_write=request.is_write)
        began_at, status = time.monotonic(), "none"
        try:
            answer = await self._answer(request, renew=renew)
            status = f"{answer.status // 100}xx"
        finally:
            API_SECONDS.labels(self._label, status).observe(time.monotonic() - began_at)
        remaining = _remaining(answer.headers)
        if remaining is not None:
            RATE_LIMIT_REMAINING.labels(self._label).set(remaining)
        return answer

    async def _answer(self, request: ApiRequest, *, renew: bool) -> ApiAnswer:
        """Send a request, and return whatever the server answers. Raise `ApiUnavailable` if it does not."""
        url = httpx2.URL(self._url(request.path))
        scheme, host = url.scheme, url.host
        port = url.port or (443 if scheme == "https" else 80)
        headers = {"Host": url.netloc.decode(), "Accept": "application/json", "User-Agent": "Pushgate"}
        headers |= {**request.headers, **await self._identity.headers(renew=renew)}
        extensions: dict[str, Any] = {}
        try:
            address = await self._connector.checked_address(scheme, host, port)
        except RemoteUnavailable as error:
            raise ApiUnavailable(str(error)) from None
        if address is not None:
            # The address that was checked; the certificate is still that of the name.
            url, extensions = url.copy_with(host=address, port=port), {"sni_hostname": host}
        try:
            async with self._http.stream(
                request.method,
                url,
                params=dict(request.query) or None,
                json=request.body,
                data=request.form,
                content=request.content,
                headers=headers,
                extensions=extensions,
            ) as response:
                content = await _content(response)
                lower = {name.lower(): value for name, value in response.headers.items()}
                status = HTTPStatus.UNAUTHORIZED if _is_sign_in(response) else response.status_code
                return ApiAnswer(status=status, headers=lower, content=content)
        except httpx2.TimeoutException:
            raise ApiUnavailable(f"{self._host} did not answer in time; try again later") from None
        except httpx2.HTTPError as error:
            # Not the error's request, which has the credential in its headers.
            raise ApiUnavailable(f"cannot reach {self._host} ({error}); try again later") from None

    def _url(self, path: str) -> str:
        if path.startswith("../"):
            return urljoin(f"{self._base_url}/", path)
        if "://" not in path:
            return f"{self._base_url}/{path.removeprefix('/')}"
        if not path.startswith(f"{self._base_url}/"):
            raise ApiRefused(
                f"{self._host} names a next page at another address; set the API URL to the server's own"
                " address",
                status=HTTPStatus.OK,
            )
        return path

    def _obey_limits(self, answer: ApiAnswer) -> None:
        """Raise `ApiLimited` for a refused request, and wait before the next where the quota is used up."""
        seconds = _wait(answer.headers)
        is_refused = answer.status == HTTPStatus.TOO_MANY_REQUESTS or (
            answer.status in {HTTPStatus.FORBIDDEN, HTTPStatus.SERVICE_UNAVAILABLE} and seconds is not None
        )
        if is_refused:
            seconds = _DEFAULT_WAIT if seconds is None else seconds
            RATE_LIMITED.labels(self._label).inc()
            self._budget.wait(seconds)
            raise ApiLimited(
                f"{self._host} limits the requests of {self._identity.name}; they go on in {seconds:.0f} s",
                seconds=seconds,
            )
        if seconds is not None:
            self._budget.wait(seconds)

    def _redirect(self, request: ApiRequest, answer: ApiAnswer) -> ApiRefused:
        location = answer.headers.get("location", "")
        where = urlsplit(location).hostname
        # Of a renamed repository or owner; for another scheme, port or host, the whole server is elsewhere.
        if location and (where is None or location.startswith(f"{self._base_url}/")):
            text = (
                f"{self._host} has the {request.subject} under another name; change the connection's clone"
                " URL, or the source's URL"
            )
        else:
            where = where or "another address"
            text = f"{self._host} redirects to {where}: set the API URL to the server's own address"
        return ApiRefused(text, status=answer.status)

    def _refusal(self, request: ApiRequest, answer: ApiAnswer) -> ApiRefused:
        explanation = _message(answer)
        said = f" ({explanation})" if explanation else ""
        name, status = self._identity.name, answer.status
        if status == HTTPStatus.UNAUTHORIZED and _is_signed_in(answer.headers):
            status = HTTPStatus.FORBIDDEN
        match status:
            case HTTPStatus.UNAUTHORIZED if explanation.startswith(_NOT_A_MEMBER):
                text = (
                    f"{name} is not a user of the organization at {self._host}: add it there, with the access"
                    f" level Basic{said}"
                )
            case HTTPStatus.UNAUTHORIZED:
                text = f"{self._host} refuses the credential of {name}: it is wrong, expired or revoked{said}"
            case HTTPStatus.FORBIDDEN if _SECOND_FACTOR.search(explanation):
                text = (
                    f"{self._host} refuses {name}: the organization or group requires single sign-on or"
                    f" two-factor authentication; authorize the token for it, or let its user set it up{said}"
                )
            case HTTPStatus.FORBIDDEN:
                text = f"{name} needs the right “{request.right}” at {self._host}{said}"
            case HTTPStatus.NOT_FOUND:
                text = (
                    f"{self._host} has no such {request.subject}, or {name} may not see it; check the URL and"
                    f" the right “{request.right}”{said}"
                )
            case _:
                text = f"{self._host} answered {status}{said}"
        return ApiRefused(text, status=status, said=explanation)


class _Complaint(BaseModel):
    """The fields in which providers explain an error: GitHub, Gitea and Azure DevOps, GitLab, Bitbucket."""

    message: Any = None
    error: Any = None
    error_description: Any = None
    errors: Any = None


def _message(answer: ApiAnswer) -> str:
    """Return the server's own explanation, shortened to one line."""
    try:
        complaint = _Complaint.model_validate_json(answer.content)
    except ValidationError:
        # Slack explains its refusals in plain text. HTML is a page of something between us and the server.
        is_plain = answer.headers.get("content-type", "").startswith("text/plain")
        said = answer.content.decode(errors="replace") if is_plain else ""
        return " ".join(said.split())[:_MAX_MESSAGE]
    parts = (complaint.errors, complaint.error_description, complaint.error, complaint.message)
    said = next((part for part in parts if part), "")
    return " ".join(_first(said).split())[:_MAX_MESSAGE]


def _first(said: Any) -> str:
    """Return the first explanation of a list or an object; Bitbucket Cloud has the details in `fields`."""
    if isinstance(said, list):
        return _first(said[0]) if said else ""
    if not isinstance(said, dict):
        return "" if said is None else str(said)
    match said:
        case {"message": str(text), "detail": {"required": [*scopes]}}:
            return f"{text} Required: {', '.join(map(str, scopes))}"
    if details := said.get("fields") or said.get("message"):
        return _first(details)
    return next((f"{name}: {_first(value)}" for name, value in said.items()), "")


def _is_signed_in(headers: Mapping[str, str]) -> bool:
    """Return whether Bitbucket Data Center accepted the credential; its 401 may mean a missing right."""
    return headers.get("x-ausername", "anonymous") != "anonymous"


def _is_sign_in(response: httpx2.Response) -> bool:
    """Return whether Azure DevOps offers a page to sign in at, which means that it refuses the credential."""
    if response.status_code == HTTPStatus.NON_AUTHORITATIVE_INFORMATION:
        return response.headers.get("content-type", "").startswith("text/html")
    location = urlsplit(response.headers.get("location", ""))
    return response.is_redirect and location.path.lower().endswith("/_signin")


def _remaining(headers: Mapping[str, str]) -> float | None:
    """Return how many requests are left, where the server says so; see `_wait`."""
    for prefix in _LIMIT_PREFIXES:
        text = headers.get(f"{prefix}-remaining", "")
        if text.isascii() and text.isdecimal():
            return float(text)
    return None


def _wait(headers: Mapping[str, str]) -> float | None:
    """Return for how many seconds no request may be sent; None if the answer sets no such limit.

    https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
    https://docs.gitlab.com/security/rate_limits/
    Atlassian's servers send `Retry-After: 0` while requests are left:
    https://confluence.atlassian.com/conf87/_ratelimiting_httpheaders-1333822054.html
    """
    after = _seconds(headers.get("retry-after", ""))
    if after is not None and after > 0:
        return min(after, _MAX_WAIT)
    for prefix in _LIMIT_PREFIXES:
        if headers.get(f"{prefix}-remaining") == "0":
            reset = _seconds(headers.get(f"{prefix}-reset", ""))
            return _DEFAULT_WAIT if reset is None else min(max(reset - time.time(), 0.0), _MAX_WAIT)
    return None


def _seconds(text: str) -> float | None:
    """Return a number of seconds, or the seconds until an HTTP date."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None


async def _content(response: httpx2.Response) -> bytes:
    content = bytearray()
    async for part in response.aiter_bytes():
        content += part
        if len(content) > _MAX_ANSWER_BYTES:
            raise ApiUnavailable("the API's answer is larger than 8 MiB")
    return bytes(content)


@cache
def _ssl_context(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    # To read the system's authorities takes 50 ms of CPU.
    return ssl.create_default_context()


@asynccontextmanager
async def http_client(*, uses_proxies: bool = True) -> AsyncIterator[httpx2.AsyncClient]:
    """Open an HTTP client that uses the proxies of the environment and follows no redirect.

    It trusts the system's certificate authorities, or those of the variable SSL_CERT_FILE.
    """
    authorities = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    context = await API.run(_ssl_context, *authorities)
    async with httpx2.AsyncClient(
        verify=context, timeout=_TIMEOUT, follow_redirects=False, trust_env=uses_proxies
    ) as client:
        yield client
