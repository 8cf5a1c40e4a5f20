"""Query parameters of the REST API: checks that answer a wrong parameter with a sentence."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

import sqlalchemy
from starlette.requests import Request

from gateway.errors import Invalid
from gateway.store import connections

Choice = TypeVar("Choice", bound=str)

_MAX_LIMIT = 200
_MAX_CURSOR_DIGITS = 18
MAX_WAIT_SECONDS = 15


def limit(request: Request) -> int:
    """Return how many items a page may have: 1 to 200, by default 50."""
    text = request.query_params.get("limit", "50")
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text, re.ASCII) or int(text) > _MAX_LIMIT:
        raise Invalid(f"limit must be a number from 1 to {_MAX_LIMIT}")
    return int(text)


def wait_seconds(request: Request) -> float:
    """Return how many seconds an answer may wait for the remote: 0 to 15, by default 3."""
    # By default less than the time limit of common HTTP clients: a new secret is shown only once.
    text = request.query_params.get("wait", "3")
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,3})?", text, re.ASCII) or float(text) > MAX_WAIT_SECONDS:
        raise Invalid(f"wait must be a number of seconds from 0 to {MAX_WAIT_SECONDS}")
    return float(text)


def connection_filter(conn: sqlalchemy.Connection, text: str | None) -> str | None:
    """Return the id of the connection that a filter names.

    Raises `NotFound` for an unknown connection, because an empty list would look like an answer.
    """
    return None if text is None else connections.find(conn, text)


def choice(known: tuple[Choice, ...], text: str | None, name: str) -> Choice | None:
    """Return the value of a parameter that takes only known words. Raises `Invalid`."""
    if text is None:
        return None
    for word in known:
        if word == text:
            return word
    raise Invalid(f"{name} must be one of {', '.join(known)}")


def number(text: str | None, name: str) -> int | None:
    """Return a position that this API has given out before. Raises `Invalid`."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_CURSOR_DIGITS):
        raise Invalid(f"{name} is not a value that this API has returned")
    return int(text)


def moment(text: str | None, name: str) -> datetime | None:
    """Return an RFC 3339 instant; UTC, unless it names a zone. Raises `Invalid`."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"{name} must be an instant such as 2026-11-23T09:00:00Z") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def refuse_nul(request: Request) -> None:
    """Refuse a URL with a NUL character: no record contains one, and PostgreSQL refuses it in a query."""
    values = (*request.path_params.values(), *request.query_params.values())
    if any("\0" in text for text in values):
        raise Invalid("the URL contains a NUL character")


def refuse_unknown(request: Request, known: Sequence[str]) -> None:
    """Refuse a query with an unknown or a repeated parameter.

    If a filter were ignored, the answer would hold more than the client has selected. Raises `Invalid`.
    """
    given = [name for name, _ in request.query_params.multi_items()]
    for name in given:
        if name not in known:
            names = f"known parameters: {', '.join(known)}" if known else "this path has no query parameters"
            raise Invalid(f"unknown query parameter {name}; {names}")
        if given.count(name) > 1:
            raise Invalid(f"the query parameter {name} is given more than once")
