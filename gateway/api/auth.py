"""Authentication by the admin token, or by the signature of a URL.

Wrong tokens are logged, and limited for each client.
"""

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_network

import structlog
from starlette.requests import Request

from gateway.crypto.signed_tokens import SignedToken, SignedTokens
from gateway.errors import NotAllowed, PushgateError
from gateway.intake.client_address import Address, client_address
from gateway.settings import MIN_TOKEN_LENGTH

log = structlog.get_logger()

# Wrong tokens that one client may try in a burst, and the seconds until it may try another.
_MAX_TRIES = 10
_SECONDS_PER_TRY = 6.0
_MAX_CLIENTS = 10_000
# The IPv6 prefix that a provider usually assigns to one customer.
_IPV6_PREFIX = 64


class WrongToken(PushgateError):
    """The token is not the admin token."""


class TooManyTries(PushgateError):
    """The client has tried too many wrong tokens; it may try again after `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many wrong tokens from this address: try again in {seconds} s")
        self.seconds = seconds


class AdminToken:
    """The admin token, and the clients that have sent wrong tokens."""

    def __init__(
        self, token: str, *, trusted_proxies: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the token, and the number of trusted proxies, behind which clients are distinguished."""
        self.value = token
        self._trusted_proxies = trusted_proxies
        self._clock = clock
        # The time at which a client's tries are forgotten, ordered by each client's latest try.
        self._forgotten_at: OrderedDict[str, float] = OrderedDict()

    def check(self, request: Request, given: str) -> None:
        """Return if the token is right. Raises `WrongToken`, or `TooManyTries`.

        A right token that is too long to guess is always accepted. Otherwise anybody with the operator's
        address, such as every client behind an untrusted proxy, could lock the operator out.
        """
        is_right = hmac.compare_digest(given.encode(), self.value.encode())
        address = client_address(request.scope, request.headers, trusted_proxies=self._trusted_proxies)
        client, now = _client(address), self._clock()
        left = self._forgotten_at.get(client, now) - now
        is_over = left > (_MAX_TRIES - 1) * _SECONDS_PER_TRY
        if is_right and not (is_over and len(self.value) < MIN_TOKEN_LENGTH):
            return
        if is_over:
            raise TooManyTries(int(left - (_MAX_TRIES - 1) * _SECONDS_PER_TRY) + 1)
        self._forgotten_at[client] = max(now, now + left) + _SECONDS_PER_TRY
        self._forgotten_at.move_to_end(client)
        if len(self._forgotten_at) > _MAX_CLIENTS:
            self._forgotten_at.popitem(last=False)
        log.warning("wrong admin token refused", client=str(address), path=request.url.path)
        raise WrongToken("this is not the admin token")


def check_signature(request: Request, subject: str, tokens: SignedTokens) -> None:
    """Return if the URL has no signature, or a valid one for this subject. Raise `NotAllowed`."""
    query = request.query_params
    if "signature" not in query:
        return
    given = SignedToken(query.get("expires", ""), query["signature"])
    if not tokens.is_valid(subject, given, now=datetime.now(UTC)):
        raise NotAllowed("the signature of this URL is invalid or has expired")


def _client(address: Address | None) -> str:
    if isinstance(address, IPv6Address):
        return str(ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)
