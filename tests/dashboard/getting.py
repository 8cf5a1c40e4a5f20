"""Get a page of the dashboard without a browser."""

import http.client
import urllib.error
import urllib.request
from urllib.parse import urlencode, urlsplit

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
