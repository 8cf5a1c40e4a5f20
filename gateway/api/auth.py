"""Who may ask: whoever has the admin token. Wrong tokens are logged, and limited for each client."""

import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_network

import structlog
from starlette.requests import Request

from gateway.errors import PushgateError
from gateway.intake.client_address import Address, client_address
from gateway.settings import MIN_TOKEN_LENGTH

log = structlog.get_logger()

# Wrong tokens that one client may try at once, and the seconds after which it may try one more.
_MAX_TRIES = 10
_SECONDS_PER_TRY = 6.0
_MAX_CLIENTS = 10_000
# What one customer of a provider usually has of IPv6.
_IPV6_PREFIX = 64


class WrongToken(PushgateError):
    """The token is not the admin token."""


class TooManyTries(PushgateError):
    """The client has tried too many wrong tokens; `seconds` says when it may try again."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too many wrong tokens came from this address: try again in {seconds} s")
        self.seconds = seconds


class AdminToken:
    """The admin token, and the clients that have tried others."""

    def __init__(
        self, token: str, *, trusted_proxies: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Tell clients apart behind so many proxies of ours."""
        self.value = token
        self._trusted_proxies = trusted_proxies
        self._clock = clock
        # The time at which all tries of a client are forgotten, in the order in which clients came last.
        self._forgotten_at: OrderedDict[str, float] = OrderedDict()

    def check(self, request: Request, given: str) -> None:
        """Return where the token is right. Raises `WrongToken`, or `TooManyTries` without having compared it.

        A right token that is too long to be guessed is always taken: otherwise anybody who shares the
        operator's address, as all do behind a proxy that is not trusted, could keep the operator out.
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
        log.warning("a wrong token was refused", client=str(address), path=request.url.path)
        raise WrongToken("this is not the admin token")


def _client(address: Address | None) -> str:
    if isinstance(address, IPv6Address):
        return str(ip_network((address, _IPV6_PREFIX), strict=False))
    return str(address)
