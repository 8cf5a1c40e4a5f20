"""What one run of git needs to reach one remote, and nothing beyond that run.

The address that was checked is the address that is connected to. Keys and passwords lie in files of mode 0600
in a folder of our own while git runs; they are never an argument or a variable.
"""

import asyncio
import fcntl
import os
import re
import secrets
import shlex
import shutil
import socket
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from gateway.errors import Invalid, RemoteUnavailable
from gateway.fetch.credentials import Login, Remote, SshKey
from gateway.fetch.host_keys import KNOWN_HOSTS
from gateway.fetch.urls import check_url, is_address, known_as, target
from gateway.threads import NAMES

_RESOLVE_SECONDS = 15
_MAX_ADDRESSES = 4
# Where clouds answer machines about themselves; link-local addresses are refused as a whole.
# https://learn.microsoft.com/en-us/azure/virtual-network/what-is-ip-address-168-63-129-16
_METADATA = frozenset(
    map(ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
_THIS_NETWORK = ip_network("0.0.0.0/8")
# Both hold an IPv4 address in their last 32 bits: https://www.rfc-editor.org/rfc/rfc8215
_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))
_ASKPASS = """#!/bin/sh
case $1 in
  Username*) exec cat "$PUSHGATE_LOGIN/user" ;;
  *) exec cat "$PUSHGATE_LOGIN/password" ;;
esac
"""

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The options with which git reaches a remote, and the environments, to be tried in turn.

    There is more than one for ssh, which is told one address of several.
    """

    options: Sequence[str]
    environments: Sequence[Mapping[str, str]]


class Access:
    """Grants access to remotes on `hosts`, or on any; with files in `home`.

    `allow_http` is for tests and demonstrations: it allows http and the addresses of this machine.
    """

    def __init__(self, home: Path, *, allow_http: bool, hosts: tuple[str, ...]) -> None:
        """Write what is the same for all remotes, and remove what processes that were killed have left."""
        self._home = home
        self._allow_http = allow_http
        self._hosts = hosts
        self._pinned = home / "known_hosts"
        self._published = home / "known_hosts.published"
        self._askpass = home / "askpass"
        self._set_up()

    def _set_up(self) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._granted = _own_folder(self, self._home)
        _write(self._published, KNOWN_HOSTS, mode=0o600)
        _write(self._askpass, _ASKPASS, mode=0o700)

    @asynccontextmanager
    async def granted(self, remote: Remote) -> AsyncIterator[Granted]:
        """Give access to a remote while the block lasts. Raises `RemoteUnavailable`."""
        try:
            # Also what was fine when the connection was made: the settings may have changed since.
            check_url(remote.url, allow_http=self._allow_http, hosts=self._hosts)
        except Invalid as error:
            raise RemoteUnavailable(f"the remote cannot be fetched: {error}") from None
        scheme, host, port = target(remote.url)
        addresses = [] if _is_proxied(scheme, host) else await self._addresses(host, port)
        if not all(path.exists() for path in (self._granted, self._published, self._askpass)):
            self._set_up()  # somebody has removed them while we run
        folder = self._granted / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        try:
            if scheme == "ssh":
                commands = self._ssh(remote, addresses[:_MAX_ADDRESSES], folder)
                yield Granted(options=(), environments=[{"GIT_SSH_COMMAND": one} for one in commands])
                return
            options: list[str] = []
            if addresses and not is_address(host):
                pinned = ",".join(f"[{one}]" if one.version == 6 else str(one) for one in addresses)  # noqa: PLR2004
                options = ["-c", f"http.curloptResolve={host}:{port}:{pinned}"]
            yield Granted(options=options, environments=[self._login(remote, folder)])
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """Return where a host is. All its addresses have to be such as may be fetched from."""
        try:
            async with asyncio.timeout(_RESOLVE_SECONDS):
                found = await NAMES.run(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError, UnicodeError) as error:
            raise RemoteUnavailable(
                f"the remote cannot be fetched: its host name cannot be resolved ({host})"
            ) from error
        addresses = list(dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
        for address in addresses:
            if is_forbidden(address, allow_loopback=self._allow_http):
                raise RemoteUnavailable(f"the host {host} is at {address}, which Pushgate never fetches from")
        return addresses

    def _login(self, remote: Remote, folder: Path) -> dict[str, str]:
        if not isinstance(remote.credentials, Login):
            return {}
        _write(folder / "user", remote.credentials.user + "\n", mode=0o600)
        _write(folder / "password", remote.credentials.password + "\n", mode=0o600)
        return {"GIT_ASKPASS": str(self._askpass), "PUSHGATE_LOGIN": str(folder)}

    def _ssh(self, remote: Remote, addresses: Sequence[Address], folder: Path) -> list[str]:
        """Return an ssh command for each address: one key; host keys are published, given, or pinned."""
        known, checking = self._pinned, "accept-new"
        if remote.host_keys:
            known, checking = folder / "known_hosts", "yes"
            _write(known, remote.host_keys.rstrip("\n") + "\n", mode=0o600)
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "15",
            "HostKeyAlias": known_as(remote.url),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "PubkeyAcceptedAlgorithms": "-ssh-rsa",
            "StrictHostKeyChecking": checking,
            "UserKnownHostsFile": _in_ssh_config(known),
            "GlobalKnownHostsFile": "none" if remote.host_keys else _in_ssh_config(self._published),
            "UpdateHostKeys": "no",
            "IdentityFile": "none",
        }
        if isinstance(remote.credentials, SshKey):
            _write(folder / "key", remote.credentials.private, mode=0o600)
            options["IdentityFile"] = _in_ssh_config(folder / "key")
        words = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        # Git gives this line to a shell.
        return [
            shlex.join(["ssh", "-F", "none", *words, "-o", f"HostName={address}"]) for address in addresses
        ]


def is_forbidden(address: Address, *, allow_loopback: bool) -> bool:
    """Say whether an address is one that nobody's repository is at, or that must not be asked for one.

    Private networks are allowed: that is where self-hosted servers are.
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
    """Say whether a proxy, the operator's own guard, resolves the name instead of us.

    An address is checked in any case: https://curl.se/docs/manpage.html#--noproxy knows networks as well.
    """
    environment = os.environ
    if scheme != "https" or not (environment.get("https_proxy") or environment.get("HTTPS_PROXY")):
        return False
    direct = re.split(r"[\s,]+", environment.get("no_proxy") or environment.get("NO_PROXY") or "")
    names = [one.lower().strip(".") for one in direct if one]
    is_direct = "*" in direct or any(("." + host.rstrip(".")).endswith("." + name) for name in names)
    return not is_direct and not is_address(host)


def _own_folder(owner: object, home: Path) -> Path:
    """Make a folder that is `owner`'s while it lives, and remove those whose owners live no more.

    Processes may share `home`. Each holds a lock in its folder, which the kernel takes from a process however
    that ends.
    """
    start = os.open(home / "access.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # One at a time, so that no folder is seen before its lock is held.
        fcntl.flock(start, fcntl.LOCK_EX)
        for left in home.glob("access-*"):
            if not _is_owned(left):
                shutil.rmtree(left, ignore_errors=True)
        folder = home / f"access-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(start)
    weakref.finalize(owner, _leave, folder, lock)
    return folder


def _is_owned(folder: Path) -> bool:
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _leave(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _in_ssh_config(path: Path) -> str:
    """Return a path as ssh's configuration takes it: in quotes, and with its % doubled."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def _write(path: Path, text: str, *, mode: int) -> None:
    """Write a file that nobody else could read at any moment, whole or not at all."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.rename(path)
