"""Who has signed in to the dashboard: a cookie proves it, nothing is kept, and so every replica knows."""

import hashlib
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from gateway.crypto.signed_tokens import SignedToken, SignedTokens

VALID = timedelta(hours=12)
# Browsers trust these as they trust HTTPS: https://w3c.github.io/webappsec-secure-contexts/#localhost
_THIS_MACHINE = {"localhost", "127.0.0.1"}


class Sessions:
    """Begins, checks and ends sessions; they end by themselves after `VALID`, and with the admin token."""

    def __init__(self, key: bytes, *, token: str, base_url: str) -> None:
        """Sign with this key. `base_url` is what the dashboard's addresses begin with, for browsers."""
        self._signed_tokens = SignedTokens(key, valid=VALID)
        # Of the token, so that whoever changes it ends all sessions.
        self._subject = f"session {hashlib.sha256(token.encode()).hexdigest()}"
        self._host = urlsplit(base_url).netloc
        # Browsers take a cookie of the second name only from the host itself, by HTTPS, for all of its paths.
        self._is_secure = base_url.startswith("https://")
        # Ports of a host share their cookies: the name tells the gateways on them apart.
        name = f"pushgate-{hashlib.sha256(base_url.encode()).hexdigest()[:8]}"
        self._cookie = f"__Host-{name}" if self._is_secure else name

    def begin(self, answer: Response, *, now: datetime) -> None:
        """Have the browser that gets this answer signed in."""
        token = self._signed_tokens.issue(self._subject, now=now)
        self._set(answer, f"{token.expires}.{token.signature}", seconds=int(VALID.total_seconds()))

    def end(self, answer: Response) -> None:
        """Have the browser that gets this answer signed in no more."""
        self._set(answer, "", seconds=0)

    def holds(self, request: Request, *, now: datetime) -> bool:
        """Say whether a request comes from a browser that is signed in."""
        expires, _, signature = request.cookies.get(self._cookie, "").partition(".")
        return self._signed_tokens.is_valid(self._subject, SignedToken(expires, signature), now=now)

    def comes_from_here(self, request: Request) -> bool:
        """Say whether a page of ours sent a request, and not one elsewhere that bets on the cookie.

        https://developer.mozilla.org/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site; by HTTP browsers send
        only the header Origin, and programs neither.
        """
        site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
        if site is not None:
            return site in {"same-origin", "none"}
        return origin is None or origin.partition("://")[2] in {self._host, request.headers.get("host")}

    def comes_by(self, request: Request) -> bool:
        """Say whether a browser that asks so will keep a session: at the gateway's address, or its machine.

        Where the address is by HTTPS, one that asks elsewhere by HTTP drops the cookie without a word.
        """
        host = request.headers.get("host", "")
        return not self._is_secure or host == self._host or host.partition(":")[0] in _THIS_MACHINE

    def _set(self, answer: Response, value: str, *, seconds: int) -> None:
        answer.set_cookie(
            self._cookie,
            value,
            max_age=seconds,
            path="/",
            secure=self._is_secure,
            httponly=True,
            # Not strict: who follows a link from a chat to a delivery is signed in there, too.
            samesite="lax",
        )
