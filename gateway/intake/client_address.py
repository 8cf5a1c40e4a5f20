"""The client's address: the TCP peer, or the address that the trusted proxies have seen."""

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.types import Scope

# Some proxies append the port: 192.0.2.1:4711, [2001:db8::1]:4711
_WITH_PORT = re.compile(r"(?P<v4>[0-9.]+):\d+|\[(?P<v6>[^\]]+)\](:\d+)?")

Address = IPv4Address | IPv6Address


def client_address(scope: Scope, headers: Mapping[str, str], *, trusted_proxies: int) -> Address | None:
    """Return the address of the client, or None if it is unknown.

    Each trusted proxy appends the address of its peer to `X-Forwarded-For`. Only as many entries from the
    right as there are trusted proxies count: the client can forge everything before them.
    """
    if trusted_proxies == 0:
        peer = scope.get("client")
        return _address(peer[0]) if peer else None
    hops = headers.get("x-forwarded-for", "").split(",")
    return _address(hops[-trusted_proxies].strip()) if len(hops) >= trusted_proxies else None


def _address(text: str) -> Address | None:
    with_port = _WITH_PORT.fullmatch(text)
    try:
        found = ip_address((with_port["v4"] or with_port["v6"]) if with_port else text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found
