"""What one run of git needs to reach one remote, and nothing beyond that run.

The address that was checked is the address that is connected to. Keys and passwords lie in files of mode 0600
in a folder of our own while git runs; they are never an argument or a variable.
"""

import asyncio
import os
import secrets
import shutil
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from gateway.errors import RemoteUnavailable
from gateway.fetch.credentials import Login, Remote, SshKey
from gateway.fetch.host_keys import KNOWN_HOSTS
from gateway.fetch.urls import host_of

_RESOLVE_SECONDS = 15
_PORTS = {"https": 443, "http": 80, "ssh": 22}
# Where clouds answer machines about themselves; link-local addresses are refused as a whole.
_METADATA = frozenset(map(ip_address, ("100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")))
_NAT64 = ip_network("64:ff9b::/96")
_ASKPASS = """#!/bin/sh
case $1 in
  Username*) exec cat "$PUSHGATE_LOGIN/user" ;;
  *) exec cat "$PUSHGATE_LOGIN/password" ;;
esac
"""

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The options and the environment with which git reaches a remote."""

    options: Sequence[str]
    environment: Mapping[str, str]


class Access:
    """Grants access, with files in `home`. `allow_loopback` is for tests and demonstrations."""

    def __init__(self, home: Path, *, allow_loopback: bool) -> None:
        """Write what is the same for all remotes, and remove what a process that was killed has left."""
        self._allow_loopback = allow_loopback
        self._pinned = home / "known_hosts"
        self._published = home / "known_hosts.published"
        self._askpass = home / "askpass"
        # Processes may share a folder; each has its own, and clears it when it starts.
        self._granted = home / f"access-{socket.gethostname()}-{os.getpid()}"
        shutil.rmtree(self._granted, ignore_errors=True)
        self._granted.mkdir(mode=0o700)
        _write(self._published, KNOWN_HOSTS, mode=0o600)
        _write(self._askpass, _ASKPASS, mode=0o700)

    @asynccontextmanager
    async def granted(self, remote: Remote) -> AsyncIterator[Granted]:
        """Give access to a remote while the block lasts. Raises `RemoteUnavailable`."""
        folder = self._granted / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        try:
            scheme, host, port = _target(remote.url)
            addresses = await self._addresses(host, port) if not _is_proxied(scheme, host) else []
            if scheme == "ssh":
                environment = {"GIT_SSH_COMMAND": self._ssh(remote, host, port, addresses, folder)}
                yield Granted(options=(), environment=environment)
                return
            options: list[str] = []
            if addresses:
                pinned = ",".join(f"[{one}]" if one.version == 6 else str(one) for one in addresses)  # noqa: PLR2004
                options = ["-c", f"http.curloptResolve={host}:{port}:{pinned}"]
            yield Granted(options=options, environment=self._login(remote, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """Return where a host is. All its addresses have to be such as may be fetched from."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_RESOLVE_SECONDS):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise RemoteUnavailable(
                f"the remote cannot be fetched: its host name cannot be resolved ({host})"
            ) from error
        addresses = list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
        for address in addresses:
            if is_forbidden(address, allow_loopback=self._allow_loopback):
                raise RemoteUnavailable(f"the host {host} is at {address}, which Pushgate never fetches from")
        return addresses

    def _login(self, remote: Remote, folder: Path) -> dict[str, str]:
        if not isinstance(remote.credentials, Login):
            return {}
        _write(folder / "user", remote.credentials.user + "\n", mode=0o600)
        _write(folder / "password", remote.credentials.password + "\n", mode=0o600)
        return {"GIT_ASKPASS": str(self._askpass), "PUSHGATE_LOGIN": str(folder)}

    def _ssh(self, remote: Remote, host: str, port: int, addresses: Sequence[Address], folder: Path) -> str:
        """Return the ssh command: one key, one address; host keys are published, given, or pinned."""
        known, checking = self._pinned, "accept-new"
        if remote.host_keys:
            known, checking = folder / "known_hosts", "yes"
            _write(known, remote.host_keys.rstrip("\n") + "\n", mode=0o600)
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "15",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "PubkeyAcceptedAlgorithms": "-ssh-rsa",
            "StrictHostKeyChecking": checking,
            "UserKnownHostsFile": f'"{known}"',
            "GlobalKnownHostsFile": f'"{self._published}"' if not remote.host_keys else "none",
            "UpdateHostKeys": "no",
            "HostKeyAlias": host if port == _PORTS["ssh"] else f"[{host}]:{port}",
        }
        if addresses:
            options["HostName"] = str(addresses[0])
        if isinstance(remote.credentials, SshKey):
            _write(folder / "key", remote.credentials.private, mode=0o600)
            options["IdentityFile"] = f'"{folder / "key"}"'
        else:
            options["IdentityFile"] = "none"
        return "ssh -F none " + " ".join(f"-o '{name}={value}'" for name, value in options.items())


def is_forbidden(address: Address, *, allow_loopback: bool) -> bool:
    """Say whether an address is one that nobody's repository is at, or that must not be asked for one.

    Private networks are allowed: that is where self-hosted servers are.
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_forbidden(address.ipv4_mapped, allow_loopback=allow_loopback)
        if address in _NAT64:
            return is_forbidden(IPv4Address(int(address) & 0xFFFFFFFF), allow_loopback=allow_loopback)
    if address.is_loopback:
        return not allow_loopback
    is_nowhere = (
        address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved
    )
    return is_nowhere or address in _METADATA


def _target(url: str) -> tuple[str, str, int]:
    if "://" not in url:
        return "ssh", host_of(url), _PORTS["ssh"]
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise RemoteUnavailable(f"the remote cannot be fetched: the protocol {parts.scheme} is not allowed")
    return parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme]


def _is_proxied(scheme: str, host: str) -> bool:
    """Say whether a proxy, the operator's own guard, resolves the name instead of us."""
    environment = os.environ
    if scheme != "https" or not (environment.get("HTTPS_PROXY") or environment.get("https_proxy")):
        return False
    direct = (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",")
    return not any(one.strip() and ("." + host).endswith("." + one.strip().lstrip(".")) for one in direct)


def _write(path: Path, text: str, *, mode: int) -> None:
    """Write a file that nobody else could read at any moment, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    fresh.rename(path)
