"""Sessions of the dashboard: a signed cookie, and no stored state, so that every replica accepts it."""

import hashlib
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from gateway.crypto.signed_tokens import SignedToken, SignedTokens
from gateway.dashboard.cookies import Cookie

VALID = timedelta(hours=12)
# Browsers treat these hosts as secure, like HTTPS: https://w3c.github.io/webappsec-secure-contexts/#localhost
_THIS_MACHINE = {"localhost", "127.0.0.1"}


class Sessions:
    """Begins, checks and ends sessions. A session expires after `VALID`, and when the admin token changes."""

    def __init__(self, key: bytes, *, token: str, base_url: str) -> None:
        """Sign with this key. `base_url` is the URL at which browsers reach the dashboard."""
        self._signed_tokens = SignedTokens(key, valid=VALID)
        # A hash of the token, so that a new token ends all sessions.
        self._subject = f"session {hashlib.sha256(token.encode()).hexdigest()}"
        self._host = urlsplit(base_url).netloc
        self._cookie = Cookie(base_url)

    def begin(self, answer: Response, *, now: datetime) -> None:
        """Set the session cookie on this answer."""
        token = self._signed_tokens.issue(self._subject, now=now)
        value = f"{token.expires}.{token.signature}"
        self._cookie.set(answer, value, seconds=int(VALID.total_seconds()))

    def end(self, answer: Response) -> None:
        """Delete the session cookie on this answer."""
        self._cookie.delete(answer)

    def holds(self, request: Request, *, now: datetime) -> bool:
        """Return whether a request carries a valid session cookie."""
        expires, _, signature = self._cookie.value(request).partition(".")
        return self._signed_tokens.is_valid(self._subject, SignedToken(expires, signature), now=now)

    def has_cookie(self, request: Request) -> bool:
        """Return whether a request carries a session cookie, valid or not."""
        return self._cookie.value(request) != ""

    def comes_from_here(self, request: Request) -> bool:
        """Return whether a page of the dashboard sent a request, rather than a page of another site (CSRF).

        https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site; over HTTP, browsers send
        only the header Origin; programs send neither.
        """
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site is not None:
            return site in {"same-origin", "none"}
        return origin is None or origin.partition("://")[2] in {self._host, request.headers.get("host")}

    def would_keep_cookie(self, request: Request) -> bool:
        """Return whether the browser would accept the session cookie: at the public URL, or on this machine.

        Where the public URL is HTTPS, browsers silently drop the cookie at another address over HTTP.
        """
        host = request.headers.get("host", "")
        return not self._cookie.is_secure or host == self._host or host.partition(":")[0] in _THIS_MACHINE
