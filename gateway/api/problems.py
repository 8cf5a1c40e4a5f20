"""Errors of the API as problem details: https://www.rfc-editor.org/rfc/rfc9457."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.auth import TooManyTries, WrongToken
from gateway.api.schemas import Error, FaultView
from gateway.errors import (
    Changed,
    Conflict,
    Fault,
    Invalid,
    KeyInUse,
    KeyReused,
    NotAllowed,
    NotFound,
    PushgateError,
    SettingError,
    StoreUnavailable,
)
from gateway.intake.body import Disconnected, TooLarge, TooMuch, TooSlow

MEDIA_TYPE = "application/problem+json"
PAGE = "/docs/errors"
"""The page that explains each kind; the `type` of a problem is a section of it."""

_UNTYPED = "about:blank"
# The message of an error about one field, as `gateway.errors.Invalid` says.
_ABOUT_A_FIELD = re.compile(r"([a-z_]+(?:\.[a-z_]+)*)(?:: | must )")


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of error: its status, its title, and what it means for a client."""

    status: int
    title: str
    meaning: str

    @property
    def error(self) -> str:
        """The title in lower case."""
        return self.title[:1].lower() + self.title[1:]

    @property
    def anchor(self) -> str:
        """The name of its section."""
        return self.error.replace(" ", "-")


_TRY_AGAIN = Kind(
    503,
    "Try again",
    "The database is not available at present, or too much is in progress. Nothing was changed. Send the"
    " request again after the seconds in the header Retry-After.",
)
NOT_SIGNED_IN = Kind(
    401,
    "Not signed in",
    "The admin token is missing or wrong. Send the header Authorization: Bearer TOKEN; `pushgate keys token`"
    " prints the token.",
)
NO_SUCH_RANGE = Kind(416, "No such range", "The requested range begins behind the end of the file.")
INTERNAL_ERROR = Kind(
    500, "Internal error", "A fault of Pushgate. The gateway's log has the details; please report it."
)
KINDS: dict[type[PushgateError], Kind] = {
    NotFound: Kind(
        404, "Not found", "The record does not exist, or the one that a filter names. `detail` has its name."
    ),
    Invalid: Kind(
        422,
        "Invalid",
        "The body or a parameter is invalid. `errors` has everything that is wrong with the fields and"
        " parameters. Nothing was changed.",
    ),
    NotAllowed: Kind(
        403,
        "Not allowed",
        "The signature of the URL is invalid or has expired. Obtain a new URL, or use the admin token.",
    ),
    Conflict: Kind(
        409,
        "Conflict",
        "The operation conflicts with another record, or with the state of this one. `detail` says with"
        " which. Nothing was changed.",
    ),
    KeyInUse: Kind(
        409,
        "Key in use",
        "The first request with this Idempotency-Key still runs, or its process was killed less than a minute"
        " ago. Send the request again in a moment.",
    ),
    KeyReused: Kind(
        422,
        "Key reused",
        "The Idempotency-Key was used for another request within the last 24 hours. Choose a new key for each"
        " request; keep it only when the same request is sent again.",
    ),
    Changed: Kind(
        412,
        "Changed meanwhile",
        "The record has another version than the header If-Match names: somebody has changed it. Read it"
        " again, and repeat the change on what it is now.",
    ),
    StoreUnavailable: _TRY_AGAIN,
    TooMuch: _TRY_AGAIN,
    SettingError: Kind(
        500,
        "Misconfigured",
        "The operation requires a setting that is missing or wrong, such as the secret key.",
    ),
    TooLarge: Kind(413, "Body too large", "The body has more bytes than the operation accepts."),
    TooSlow: Kind(408, "Body too slow", "The body did not arrive in time."),
    WrongToken: NOT_SIGNED_IN,
    TooManyTries: Kind(
        429,
        "Too many tries",
        "The client has sent too many wrong tokens. It may try again after the seconds in Retry-After.",
    ),
    Disconnected: Kind(400, "Disconnected", "The client disconnected before its body was complete."),
}
"""The kinds by the errors of Pushgate."""


def sections() -> list[Kind]:
    """Return each kind once, by its status."""
    kinds = {*KINDS.values(), NO_SUCH_RANGE, INTERNAL_ERROR}
    return sorted(kinds, key=lambda kind: (kind.status, kind.title))


def problem(
    kind: Kind, detail: str, headers: dict[str, str] | None = None, *, faults: Sequence[Fault] = ()
) -> Response:
    """Return the answer of an error of this kind."""
    return _answer(f"{PAGE}#{kind.anchor}", kind.status, kind.title, detail, headers, faults=faults)


def untyped(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """Return the answer of an error about which the status says all."""
    return _answer(_UNTYPED, status, title, detail, headers)


def kind_of(error: Exception) -> Kind:
    """Return the kind of a Pushgate error. Raises any other error."""
    for cause in type(error).__mro__:
        if cause in KINDS:
            return KINDS[cause]
    raise error


async def on_error(_request: Request, error: Exception) -> Response:
    """Answer a Pushgate error."""
    faults = error.faults if isinstance(error, Invalid) else ()
    return problem(kind_of(error), str(error), retry_after(error), faults=faults)


async def on_bug(_request: Request, _error: Exception) -> Response:
    """Answer an unexpected error; the log contains the traceback."""
    return problem(INTERNAL_ERROR, "see the gateway's log")


def retry_after(error: Exception) -> dict[str, str]:
    """Return the Retry-After header, where a retry may help."""
    if isinstance(error, TooManyTries):
        return {"retry-after": str(error.seconds)}
    if isinstance(error, KeyInUse):
        return {"retry-after": "1"}
    return {"retry-after": "5"} if kind_of(error).status == HTTPStatus.SERVICE_UNAVAILABLE else {}


def fault_of(message: str, body: type[BaseModel] | None) -> tuple[Fault, ...]:
    """Return the fault that the message of an `Invalid` is about, if it names a field of the body."""
    found = _ABOUT_A_FIELD.match(message)
    path = found[1].split(".") if found is not None else []
    if body is None or not path or path[0] not in body.model_fields:
        return ()
    return (Fault(message, tuple(path)),)


def _answer(
    kind: str,
    status: int,
    title: str,
    detail: str,
    headers: dict[str, str] | None,
    *,
    faults: Sequence[Fault] = (),
) -> Response:
    body = Error(
        type=kind,
        title=title,
        status=status,
        detail=detail,
        errors=[_view(fault) for fault in faults],
        error=title[:1].lower() + title[1:],
    )
    return Response(body.model_dump_json(), status, headers, media_type=MEDIA_TYPE)


def _view(fault: Fault) -> FaultView:
    pointer = None
    if fault.path:
        parts = (str(part).replace("~", "~0").replace("/", "~1") for part in fault.path)
        # As the fragment of a URI: https://www.rfc-editor.org/rfc/rfc6901#section-6
        pointer = "#/" + "/".join(quote(part, safe="~!$&'()*+,;=:@") for part in parts)
    return FaultView(pointer=pointer, parameter=fault.parameter, detail=fault.detail)
