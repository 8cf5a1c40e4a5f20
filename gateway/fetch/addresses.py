"""Decides which addresses may be connected to, by git and by the clients of providers' APIs."""

import asyncio
import os
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from gateway.errors import RemoteUnavailable
from gateway.fetch.urls import is_address
from gateway.threads import NAMES

_RESOLVE_SECONDS = 15
# Metadata services of clouds. Link-local addresses are refused as a whole.
# https://learn.microsoft.com/en-us/azure/virtual-network/what-is-ip-address-168-63-129-16
_METADATA = frozenset(
    map(ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
_THIS_NETWORK = ip_network("0.0.0.0/8")
# Networks with an IPv4 address in the last 32 bits: https://www.rfc-editor.org/rfc/rfc8215
_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))

Address = IPv4Address | IPv6Address


async def reachable_addresses(
    scheme: str, host: str, port: int, *, allow_loopback: bool
) -> Sequence[Address]:
    """Return the addresses of a host; none if a proxy of the operator resolves its name.

    Raise `RemoteUnavailable` if it has no address, or one that is forbidden.
    """
    if _is_proxied(scheme, host):
        return ()
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await NAMES.run(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError) as error:
        raise RemoteUnavailable(f"the host name cannot be resolved: {host}") from error
    addresses = list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
    for address in addresses:
        if is_forbidden(address, allow_loopback=allow_loopback):
            raise RemoteUnavailable(
                f"the host {host} has the address {address}, which Pushgate never connects to"
            )
    return addresses


def is_forbidden(address: Address, *, allow_loopback: bool) -> bool:
    """Return whether an address must not be connected to: no repository is there, or it is dangerous.

    Private networks are allowed, because self-hosted servers are there.
    """
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if any(address in network for network in _NAT64):
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_forbidden(inner, allow_loopback=allow_loopback)
    if address.is_loopback:
        return not allow_loopback
    is_nowhere = address.is_link_local or address.is_multicast or address.is_reserved
    return is_nowhere or address.is_unspecified or address in _THIS_NETWORK or address in _METADATA


def _is_proxied(scheme: str, host: str) -> bool:
    """Return whether a proxy of the operator resolves the name instead of us.

    Addresses are always checked here: NO_PROXY may list networks (https://curl.se/docs/manpage.html#--noproxy).
    """
    environment = os.environ
    if scheme != "https" or not (environment.get("https_proxy") or environment.get("HTTPS_PROXY")):
        return False
    direct = re.split(r"[\s,]+", environment.get("no_proxy") or environment.get("NO_PROXY") or "")
    names = [name.lower().strip(".") for name in direct if name]
    is_direct = "*" in direct or any(("." + host.rstrip(".")).endswith("." + name) for name in names)
    return not is_direct and not is_address(host)
