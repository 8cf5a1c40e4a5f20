"""Query parameters of the REST API: checks that answer a wrong parameter with a sentence."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

import sqlalchemy
from pydantic import BaseModel
from starlette.requests import Request

from gateway.api.schemas import Page
from gateway.errors import Fault, Invalid
from gateway.store import connections

Choice = TypeVar("Choice", bound=str)

_MAX_LIMIT = 200
_MAX_CURSOR_DIGITS = 18
MAX_WAIT_SECONDS = 15


def wrong(name: str, message: str) -> Invalid:
    """Return the error of a parameter."""
    return Invalid.of([Fault(message, parameter=name)])


def limit(request: Request) -> int:
    """Return how many items a page may have: 1 to 200, by default 50."""
    return whole_number(request.query_params.get("limit", "50"), "limit", most=_MAX_LIMIT)


def wait_seconds(request: Request) -> float:
    """Return how many seconds an answer may wait for the remote: 0 to 15, by default 3."""
    # By default less than the time limit of common HTTP clients: a new secret is shown only once.
    return _wait(request.query_params.get("wait", "3"))


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
    raise wrong(name, f"{name} must be one of {', '.join(known)}")


def number(text: str | None, name: str) -> int | None:
    """Return a position that this API has given out before. Raises `Invalid`."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_CURSOR_DIGITS):
        raise wrong(name, f"{name} is not a value that this API has returned")
    return int(text)


def moment(text: str | None, name: str) -> datetime | None:
    """Return an RFC 3339 instant; UTC, unless it names a zone. Raises `Invalid`."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
        # An instant near the year 1 or 9999 may have none in UTC.
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise wrong(name, f"{name} must be an instant such as 2026-11-23T09:00:00Z") from None


def refuse_nul(request: Request) -> None:
    """Refuse a URL with a NUL character: no record contains one, and PostgreSQL refuses it in a query."""
    found = list(_with_nul(request))
    if found:
        raise Invalid.of(found)


def refuse_unknown(request: Request, known: Sequence[str]) -> None:
    """Refuse a query with an unknown or a repeated parameter.

    If a filter were ignored, the answer would hold more than the client has selected. Raises `Invalid`.
    """
    found = list(_unknown(request, known))
    if found:
        raise Invalid.of(found)


def faults_of_url(request: Request, parameters: Mapping[str, Mapping[str, Any]]) -> list[Fault]:
    """Return everything that is wrong with the path and the query, by the declarations of the parameters."""
    found = [*_with_nul(request), *_unknown(request, tuple(parameters))]
    for name, declared in parameters.items():
        text = request.query_params.get(name)
        if declared.get("required") and not (text or "").strip():
            found.append(Fault(f"{name}: give {declared['description']}", parameter=name))
        try:
            _check(name, text, declared)
        except Invalid as error:
            found += error.faults
    return found


def link_to_next(request: Request, page: BaseModel) -> dict[str, str]:
    """Return the header with the link to the page behind this one, if there is one (RFC 8288)."""
    cursor = getattr(page, "next", None)
    if not isinstance(page, Page) or cursor is None:
        return {}
    given = {**request.query_params, "cursor": cursor}
    # Relative, so that it holds behind each proxy.
    return {"link": f'<?{urlencode(given)}>; rel="next"'}


def _check(name: str, text: str | None, declared: Mapping[str, Any]) -> None:
    """Raise `Invalid` if the value of a parameter is not what its schema describes."""
    schema = declared.get("schema", {})
    if text is None:
        return
    if "choices" in declared:
        choice(tuple(declared["choices"]), text, name)
    if schema.get("type") == "integer":
        whole_number(text, name, most=schema["maximum"])
    if schema.get("type") == "number":
        _wait(text)
    if schema.get("format") == "date-time":
        moment(text, name)


def whole_number(text: str, name: str, *, most: int) -> int:
    """Return a number from 1 to `most`, which has at most three digits. Raises `Invalid`."""
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text, re.ASCII) or int(text) > most:
        raise wrong(name, f"{name} must be a number from 1 to {most}")
    return int(text)


def _wait(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,3})?", text, re.ASCII) or float(text) > MAX_WAIT_SECONDS:
        raise wrong("wait", f"wait must be a number of seconds from 0 to {MAX_WAIT_SECONDS}")
    return float(text)


def _with_nul(request: Request) -> Iterator[Fault]:
    for name, text in (*request.path_params.items(), *request.query_params.items()):
        if "\0" in text:
            yield Fault("the URL contains a NUL character", parameter=name)


def _unknown(request: Request, known: Sequence[str]) -> Iterator[Fault]:
    names = [name for name, _ in request.query_params.multi_items()]
    others = f"known parameters: {', '.join(known)}" if known else "this path has no query parameters"
    for name in dict.fromkeys(names):
        if name not in known:
            yield Fault(f"unknown query parameter {name}; {others}", parameter=name)
        elif names.count(name) > 1:
            yield Fault(f"the query parameter {name} is given more than once", parameter=name)
