"""Cookies of the dashboard."""

import hashlib

from starlette.requests import Request
from starlette.responses import Response


class Cookie:
    """One cookie of the gateway that browsers reach at `base_url`; scripts cannot read it."""

    def __init__(self, base_url: str, *, suffix: str = "") -> None:
        """Name the cookie; the suffix distinguishes the cookies of one gateway."""
        # Browsers accept a __Host- cookie only over HTTPS, from the host itself, and for all its paths.
        self.is_secure = base_url.startswith("https://")
        # All ports of a host share their cookies: the name distinguishes gateways on one host.
        name = f"pushgate-{hashlib.sha256(base_url.encode()).hexdigest()[:8]}{suffix}"
        self._name = f"__Host-{name}" if self.is_secure else name

    def value(self, request: Request) -> str:
        """Return the value that a request carries, or an empty string."""
        return request.cookies.get(self._name, "")

    def set(self, answer: Response, value: str, *, seconds: int) -> None:
        """Set the cookie on an answer."""
        answer.set_cookie(
            self._name,
            value,
            max_age=seconds,
            path="/",
            secure=self.is_secure,
            httponly=True,
            # Not strict: a link from a chat to a delivery opens with the session.
            samesite="lax",
        )

    def delete(self, answer: Response) -> None:
        """Delete the cookie on an answer."""
        self.set(answer, "", seconds=0)
