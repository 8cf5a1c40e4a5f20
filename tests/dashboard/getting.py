"""Get a page of the dashboard without a browser."""

import http.client
import urllib.error
import urllib.request
from html import unescape
from urllib.parse import urlencode, urlsplit

from testing.in_process import Answer, InProcess
from testing.service import ADMIN_TOKEN, Service


def signed_in(service: Service) -> str:
    """Return the cookie of a signed-in user."""
    connection = http.client.HTTPConnection(urlsplit(service.url).netloc)
    connection.request("POST", "/sign-in", urlencode({"token": ADMIN_TOKEN}))
    answer = connection.getresponse()
    assert answer.status == 303
    connection.close()
    return str(answer.headers["set-cookie"]).partition(";")[0]


def got(url: str, cookie: str, **more: str) -> tuple[int, str, dict[str, str]]:
    """Get an address as a signed-in browser does; return status, text and headers."""
    request = urllib.request.Request(url, headers={"cookie": cookie, **more})  # noqa: S310 - our own gateway
    try:
        with urllib.request.urlopen(request) as answer:  # noqa: S310 - the same
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


class Browser:
    """A browser that has signed in."""

    def __init__(self, gateway: InProcess) -> None:
        """Sign in."""
        self._gateway = gateway
        form = urlencode({"token": ADMIN_TOKEN}).encode()
        answer = gateway.send("POST", "/sign-in", form, token=None)
        self._cookie = answer.headers["set-cookie"].partition(";")[0]

    def get(self, path: str) -> str:
        """Return the text of a page."""
        answer = self._gateway.send("GET", path, token=None, cookie=self._cookie)
        assert answer.status == 200, path
        return unescape(answer.body.decode())

    def post(self, path: str, fields: dict[str, str], **headers: str) -> Answer:
        """Send a form."""
        form = urlencode(fields).encode()
        return self._gateway.send("POST", path, form, token=None, cookie=self._cookie, **headers)
