"""The statuses of the REST API besides success, as the OpenAPI document describes them."""

from collections.abc import Mapping
from typing import Any

_ERROR = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Error"}}}
_SECONDS = {"type": "integer", "minimum": 1}
RETRY_AFTER = {"Retry-After": {"description": "seconds to wait before a retry", "schema": _SECONDS}}
_TEXT = {"type": "string"}


def error(description: str, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the description of an error response."""
    return {"description": description, **({"headers": headers} if headers else {}), "content": _ERROR}


_RESPONSES: Mapping[int, tuple[str, dict[str, Any]]] = {
    401: (
        "NotSignedIn",
        error(
            "The admin token is missing or wrong.",
            {"WWW-Authenticate": {"description": "the scheme: Bearer", "schema": _TEXT}},
        ),
    ),
    403: ("NotAllowed", error("The signature of the URL is invalid or has expired.")),
    404: ("NotFound", error("The record does not exist, or the one that a filter names.")),
    408: ("BodyTooSlow", error("The body did not arrive in time.")),
    409: ("Conflict", error("The operation conflicts with another record, or with the state of this one.")),
    412: ("ChangedMeanwhile", error("The settings have another version than If-Match names.")),
    413: ("BodyTooLarge", error("The body is too large: more than 1 MiB, or 128 KiB of a report.")),
    416: (
        "NoSuchRange",
        error(
            "The range begins behind the end of the file.",
            {"Content-Range": {"description": "the size: bytes */SIZE", "schema": _TEXT}},
        ),
    ),
    422: ("Invalid", error("The body or a parameter is invalid.")),
    429: ("TooManyTries", error("The client has sent too many wrong tokens.", RETRY_AFTER)),
    503: (
        "TryAgain",
        error("The store is not available at present, or too much is in progress.", RETRY_AFTER),
    ),
}
_OTHER = ("OtherError", error("Any other error."))

COMPONENTS = dict([*_RESPONSES.values(), _OTHER])
"""The responses by their names in the document."""


def responses(statuses: set[int]) -> dict[str, Any]:
    """Return references to the responses with these statuses, and to that of any other error."""
    named = {str(status): _RESPONSES[status][0] for status in sorted(statuses)} | {"default": _OTHER[0]}
    return {status: {"$ref": f"#/components/responses/{name}"} for status, name in named.items()}


def without_content(responses: Mapping[str, Any]) -> dict[str, Any]:
    """Return the responses to HEAD: the same headers, and no content."""
    found = {}
    for status, response in responses.items():
        name = response.get("$ref", "").rpartition("/")[2]
        found[status] = {
            key: value for key, value in COMPONENTS.get(name, response).items() if key != "content"
        }
    return found


FILE_HEADERS = {
    name: {"description": description, "schema": _TEXT}
    for name, description in {
        "ETag": "the SHA-256 of the file, in quotes: for If-None-Match and If-Range",
        "Accept-Ranges": "bytes",
        "Cache-Control": "the file never changes",
        "Content-Disposition": "the name of the file",
        "Last-Modified": "when the package was made",
        "Repr-Digest": "the SHA-256 of the whole file, as in RFC 9530",
    }.items()
}
ETAG = {
    "ETag": {"description": "the version: for If-None-Match, and for If-Match of changes", "schema": _TEXT}
}
LINK = {"Link": {"description": "the URL of the next page, with rel=next, if there is one", "schema": _TEXT}}
LOCATION = {"Location": {"description": "the path of the resource", "schema": _TEXT}}
REPLAYED = {
    "Idempotency-Replayed": {
        "description": "true if this is the kept answer to the first request with the Idempotency-Key",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
CONTENT_RANGE = {
    "Content-Range": {"description": "the part: bytes FIRST-LAST/SIZE", "schema": _TEXT},
}
