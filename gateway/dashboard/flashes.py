"""Flash messages: what an action has done, shown once, on the page to which the browser is redirected."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from gateway.crypto.signed_tokens import SignedToken, SignedTokens
from gateway.dashboard.cookies import Cookie

Kind = Literal["good", "bad"]

# Longer than a redirect takes, and short enough that a message is not shown a day late.
_VALID = timedelta(minutes=1)
# Browsers drop cookies over 4096 bytes.
_MAX_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Flash:
    """A message, and whether it reports a success."""

    text: str
    kind: Kind = "good"


class Flashes:
    """Keeps a message in a signed cookie until the next page, so that every replica can show it."""

    def __init__(self, key: bytes, *, base_url: str) -> None:
        """Sign with this key. `base_url` is the URL at which browsers reach the dashboard."""
        self._signed_tokens = SignedTokens(key, valid=_VALID)
        self._cookie = Cookie(base_url, suffix="-flash")
        self._current: ContextVar[Flash | None] = ContextVar("flash", default=None)

    @property
    def current(self) -> Flash | None:
        """The message that the page of the current request shows."""
        return self._current.get()

    def keep(self, answer: Response, flash: Flash, *, now: datetime) -> None:
        """Set the cookie on a redirect."""
        flash = Flash(flash.text[:_MAX_CHARACTERS], flash.kind)
        token = self._signed_tokens.issue(_subject(flash), now=now)
        text = urlsafe_b64encode(flash.text.encode()).decode()
        value = f"{token.expires}.{token.signature}.{flash.kind}.{text}"
        self._cookie.set(answer, value, seconds=int(_VALID.total_seconds()))

    @contextmanager
    def shown(self, request: Request, *, now: datetime) -> Iterator[None]:
        """Make the message of a request `current`."""
        token = self._current.set(self._of(request, now=now))
        try:
            yield
        finally:
            self._current.reset(token)

    def forget(self, request: Request, answer: Response) -> None:
        """Delete the cookie on a page that has shown its message."""
        if self._cookie.value(request):
            self._cookie.delete(answer)

    def _of(self, request: Request, *, now: datetime) -> Flash | None:
        parts = self._cookie.value(request).split(".")
        if len(parts) != 4:  # noqa: PLR2004 - the parts of the cookie
            return None
        expires, signature, kind, text = parts
        try:
            flash = Flash(urlsafe_b64decode(text).decode(), "bad" if kind == "bad" else "good")
        except ValueError:
            return None
        is_ours = self._signed_tokens.is_valid(_subject(flash), SignedToken(expires, signature), now=now)
        return flash if is_ours else None


def _subject(flash: Flash) -> str:
    return f"flash {flash.kind} {flash.text}"
