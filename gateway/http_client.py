"""HTTP requests of our own, by the standard library: what all who send them have in common."""

from http.client import HTTPException
from typing import Any
from urllib.request import HTTPRedirectHandler

# Whoever is asked cannot be reached, or breaks off in the middle of the answer.
BROKEN_OFF = (OSError, HTTPException)


class NoRedirects(HTTPRedirectHandler):
    """A redirect would carry the token to another address."""

    def redirect_request(self, *_arguments: Any) -> None:
        """Follow none: the redirect itself is the answer, and an error."""
        return


def reason(error: Exception) -> str:
    """Return what kept an answer from coming, as far as it is told."""
    return str(getattr(error, "reason", None) or error)
