"""Helpers for outgoing HTTP requests with the standard library."""

from http.client import HTTPException
from typing import Any
from urllib.request import HTTPRedirectHandler

# The server is unreachable, or the answer ends too early.
BROKEN_OFF = (OSError, HTTPException)


class NoRedirects(HTTPRedirectHandler):
    """Follows no redirect, which would send the token to another address."""

    def redirect_request(self, *_arguments: Any) -> None:
        """Return None, so that the redirect is raised as an error."""
        return


def reason(error: Exception) -> str:
    """Return the reason of a failed request."""
    return str(getattr(error, "reason", None) or error)
