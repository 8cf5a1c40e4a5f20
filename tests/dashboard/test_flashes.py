"""Flash messages: shown once, on the page after an action."""

from datetime import UTC, datetime, timedelta

import pytest
from starlette.requests import Request
from starlette.responses import Response

from gateway.dashboard.flashes import Flash, Flashes

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
FLASHES = Flashes(b"k" * 32, base_url="http://127.0.0.1:8080")


def cookie_of(answer: Response) -> str:
    """Return the cookie that an answer sets."""
    return answer.headers["set-cookie"].partition(";")[0]


def bearing(cookie: str) -> Request:
    """Return a request with this cookie."""
    return Request({"type": "http", "headers": [(b"cookie", cookie.encode("latin-1"))]})


def seen(flashes: Flashes, cookie: str, *, now: datetime = NOW) -> Flash | None:
    """Return the message that the page of a request with this cookie shows."""
    with flashes.shown(bearing(cookie), now=now):
        return flashes.current


@pytest.mark.parametrize("flash", [Flash("Secret of acme/ä → 日本 rotated."), Flash("No.", "bad"), Flash("")])
def test_a_message_survives_the_redirect(flash: Flash) -> None:
    """In any language, and only during the request."""
    answer = Response()
    FLASHES.keep(answer, flash, now=NOW)
    assert seen(FLASHES, cookie_of(answer)) == flash
    assert FLASHES.current is None


def test_a_message_of_somebody_else_is_not_shown() -> None:
    """Changed, signed with another key, too old, or malformed."""
    answer = Response()
    FLASHES.keep(answer, Flash("x" * 10_000), now=NOW)
    cookie = cookie_of(answer)
    assert len(cookie) < 4096
    assert seen(FLASHES, cookie, now=NOW + timedelta(minutes=2)) is None
    assert seen(Flashes(b"x" * 32, base_url="http://127.0.0.1:8080"), cookie) is None
    name = cookie.partition("=")[0]
    for forged in (
        cookie.replace(".good.", ".bad."),
        cookie[:-8] + "eHh4eHh4",
        f"{name}=1.2.3",
        f"{name}=1.2.good.\xff",
    ):
        assert seen(FLASHES, forged) is None


def test_a_message_is_shown_once() -> None:
    """The page that shows it deletes the cookie; other pages set none."""
    answer, page = Response(), Response()
    FLASHES.keep(answer, Flash("Done."), now=NOW)
    FLASHES.forget(bearing(cookie_of(answer)), page)
    assert "Max-Age=0" in page.headers["set-cookie"]
    other = Response()
    FLASHES.forget(bearing("other=1"), other)
    assert "set-cookie" not in other.headers
