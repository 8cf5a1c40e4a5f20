"""Requests to a provider's API, and the operations that are made of them.

An operation is a generator: it yields requests, receives their answers, or `ApiRefused` as an exception, and
returns its result, so it needs no network and no mock. `gateway.provider_apis.client` runs it.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

from gateway.errors import PushgateError

T = TypeVar("T")


class ApiError(PushgateError):
    """A provider's API did not do what was requested."""


class ApiUnavailable(ApiError):
    """The API is unreachable, slow or broken at present: a retry may succeed."""


class ApiLimited(ApiUnavailable):
    """The API accepts no more requests of this identity for `seconds`."""

    def __init__(self, message: str, *, seconds: float) -> None:
        """Remember how long to wait."""
        super().__init__(message)
        self.seconds = seconds


class ApiRefused(ApiError):
    """The API refuses the request: a retry cannot succeed.

    `status` is its HTTP status, and `said` the provider's explanation.
    """

    def __init__(self, message: str, *, status: int, said: str = "") -> None:
        """Remember the status and the explanation."""
        super().__init__(message)
        self.status, self.said = status, said


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """A request. `path` is quoted, and relative to the base URL of the API.

    `path` may be an absolute URL, such as the address of a next page, if it begins with the base URL; it
    begins with `../` for another API of the server. `right` names the right that the identity needs, in the
    provider's words; it is empty if the request needs no credential. `body` is sent as JSON, `form` as the
    fields of a form, `content` as it is. `headers` are sent beside those of the identity. If
    `may_be_missing`, 404 is an answer; otherwise, the error says that there is no such `subject`. A request
    that `is_sign_in` obtains a token, and creates nothing else.
    """

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    right: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    content: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    may_be_missing: bool = False
    subject: str = "repository"
    is_sign_in: bool = False

    @property
    def is_write(self) -> bool:
        """Return whether it counts for the provider's limits of requests that write."""
        return self.method not in {"GET", "HEAD"} and not self.is_sign_in


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiAnswer:
    """An answer. `headers` has lower-case names."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def read(self, model: type[T]) -> T:
        """Return the JSON document of the answer. Raise `ApiUnavailable` if it is another document."""
        try:
            return TypeAdapter(model).validate_json(self.content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            at = ".".join(str(part) for part in first["loc"]) or "the document"
            raise ApiUnavailable(f"the API's answer cannot be read: {at}: {first['msg']}") from None


Operation: TypeAlias = Generator[ApiRequest, ApiAnswer, T]
