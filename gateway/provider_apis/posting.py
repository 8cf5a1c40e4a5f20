"""Messages to URLs that people enter, such as an incoming webhook of Slack: one POST for each.

Such a URL is a secret. No error repeats more of it than its host.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import urlsplit

from gateway.provider_apis.budget import WriteLimit
from gateway.provider_apis.operation import ApiRefused, ApiRequest, ApiUnavailable, Operation

_PASSING = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who posts, for the limits of requests. It has no credential: the URL, or a signature, is one."""

    name: str
    requests_per_hour: int = 3600
    write_limits: Sequence[WriteLimit] = ()

    async def headers(self, *, renew: bool) -> Mapping[str, str]:  # noqa: ARG002 - there is none to renew
        """Return no headers."""
        return {}


def origin(url: str) -> str:
    """Return the scheme, host and port of a URL: the base URL of the operation `post`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message for a URL. `headers` has at least its content type."""

    url: str = field(repr=False)
    content: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


def post(message: Message) -> Operation[None]:
    """Post a message. Any answer of the class 2xx is a success.

    Raise `ApiUnavailable` if a retry may succeed, `ApiRefused` if it cannot.
    """
    parts = urlsplit(message.url)
    # The path is always there, because the client checks that it follows the base URL.
    url = parts._replace(path=parts.path or "/", fragment="").geturl()
    try:
        yield ApiRequest(
            method="POST",
            path=url,
            right="",
            headers=message.headers,
            content=message.content,
            subject="webhook",
        )
    except ApiRefused as error:
        if error.status in _PASSING:
            raise ApiUnavailable(f"{parts.hostname} answered {error.status}; try again later") from None
        said = f" ({error.said})" if error.said else ""
        raise ApiRefused(
            f"{parts.hostname} answered {error.status}{said}", status=error.status, said=error.said
        ) from None
