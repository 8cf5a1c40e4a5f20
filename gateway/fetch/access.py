"""Grants one run of git access to one remote, for the duration of that run.

Git connects to the address that was checked. While git runs, keys and passwords are in files of mode 0600 in
a folder of our own; they are never in an argument or an environment variable.
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
# Metadata services of clouds. Link-local addresses are refused as a whole.
# https://learn.microsoft.com/en-us/azure/virtual-network/what-is-ip-address-168-63-129-16
_METADATA = frozenset(
    map(ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
_THIS_NETWORK = ip_network("0.0.0.0/8")
# Networks with an IPv4 address in the last 32 bits: https://www.rfc-editor.org/rfc/rfc8215
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
    """The options for git, and the environments to try in turn.

    Only ssh has more than one: each environment names one address of the host.
    """

    options: Sequence[str]
    environments: Sequence[Mapping[str, str]]


class Access:
    """Grants access to remotes on `hosts`, or on any host if it is empty. Its files are in `home`.

    `allow_http` is for tests and demonstrations: it allows http and the addresses of this machine.
    """

    def __init__(self, home: Path, *, allow_http: bool, hosts: tuple[str, ...]) -> None:
        """Write the files that all remotes share, and remove leftovers of killed processes."""
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
        """Grant access to a remote within the block. Raises `RemoteUnavailable`."""
        try:
            # Checked again because the settings may have changed since the connection was made.
            check_url(remote.url, allow_http=self._allow_http, hosts=self._hosts)
        except Invalid as error:
            raise RemoteUnavailable(f"the remote cannot be fetched: {error}") from None
        scheme, host, port = target(remote.url)
        addresses = [] if _is_proxied(scheme, host) else await self._addresses(host, port)
        if not all(path.exists() for path in (self._granted, self._published, self._askpass)):
            self._set_up()  # the files were removed while we run
        folder = self._granted / secrets.token_hex(8)
        has_files = remote.credentials is not None or remote.host_keys is not None
        if has_files:
            folder.mkdir(mode=0o700)
        try:
            if scheme == "ssh":
                commands = self._ssh(remote, addresses[:_MAX_ADDRESSES], folder)
                yield Granted(options=(), environments=[{"GIT_SSH_COMMAND": command} for command in commands])
                return
            options: list[str] = []
            if addresses and not is_address(host):
                pinned = ",".join(f"[{ip}]" if isinstance(ip, IPv6Address) else str(ip) for ip in addresses)
                options = ["-c", f"http.curloptResolve={host}:{port}:{pinned}"]
            yield Granted(options=options, environments=[self._login(remote, folder)])
        finally:
            if has_files:
                shutil.rmtree(folder, ignore_errors=True)

    async def checked_address(self, scheme: str, host: str, port: int) -> str | None:
        """Return an address of a host, or None if a proxy of the operator resolves the name.

        Raise `RemoteUnavailable` if the host has no address, or one that is forbidden.
        """
        if _is_proxied(scheme, host):
            return None
        return str((await self._addresses(host, port))[0])

    async def _addresses(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a host. Raises `RemoteUnavailable` if one of them is forbidden."""
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
                raise RemoteUnavailable(
                    f"the host {host} has the address {address}, which Pushgate never fetches from"
                )
        return addresses

    def _login(self, remote: Remote, folder: Path) -> dict[str, str]:
        if not isinstance(remote.credentials, Login):
            return {}
        _write(folder / "user", remote.credentials.user + "\n", mode=0o600)
        _write(folder / "password", remote.credentials.password + "\n", mode=0o600)
        return {"GIT_ASKPASS": str(self._askpass), "PUSHGATE_LOGIN": str(folder)}

    def _ssh(self, remote: Remote, addresses: Sequence[Address], folder: Path) -> list[str]:
        """Return an ssh command for each address, with the published, given or pinned host keys."""
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
        # Git passes this line to a shell.
        return [
            shlex.join(["ssh", "-F", "none", *words, "-o", f"HostName={address}"]) for address in addresses
        ]


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


def _own_folder(owner: object, home: Path) -> Path:
    """Make a folder that exists as long as `owner`, and remove the folders of dead processes.

    Processes may share `home`. Each holds a lock in its folder, which the kernel releases however the process
    ends.
    """
    startup_lock = os.open(home / "access.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # One process at a time, so that no other process sees a folder before its lock is held.
        fcntl.flock(startup_lock, fcntl.LOCK_EX)
        for leftover in home.glob("access-*"):
            if not _is_owned(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        folder = home / f"access-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(startup_lock)
    weakref.finalize(owner, _remove_own, folder, lock)
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


def _remove_own(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _in_ssh_config(path: Path) -> str:
    """Return a path in the syntax of ssh's configuration: quoted, with each % doubled."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"'


def _write(path: Path, text: str, *, mode: int) -> None:
    """Write a file atomically; no other user can read it at any moment."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.rename(path)
