"""Grants one run of git access to one remote, for the duration of that run.

Git connects to the address that was checked. While git runs, keys and passwords are in files of mode 0600 in
a folder of our own; they are never in an argument or an environment variable.
"""

import fcntl
import os
import secrets
import shlex
import shutil
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path

from gateway.errors import Invalid, RemoteUnavailable
from gateway.fetch.addresses import Address, reachable_addresses
from gateway.fetch.credentials import Bearer, Login, Remote, SshKey
from gateway.fetch.host_keys import KNOWN_HOSTS
from gateway.fetch.urls import check_url, is_address, known_as, target

_MAX_ADDRESSES = 4
_ASKPASS = """#!/bin/sh
case $1 in
  Username*) exec cat "$PUSHGATE_LOGIN/user" ;;
  *) exec cat "$PUSHGATE_LOGIN/password" ;;
esac
"""


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
        addresses = await reachable_addresses(scheme, host, port, allow_loopback=self._allow_http)
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

    def _login(self, remote: Remote, folder: Path) -> dict[str, str]:
        if isinstance(remote.credentials, Bearer):
            _write(folder / "gitconfig", _bearer_config(remote.url, remote.credentials), mode=0o600)
            return {"GIT_CONFIG_GLOBAL": str(folder / "gitconfig")}
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


def _bearer_config(url: str, bearer: Bearer) -> str:
    """Return the configuration with which git sends a token to this remote, and to no other.

    Only git 2.46 and later can take a bearer token from a credential helper.
    """
    return (
        f"[http {_in_git_config(url)}]\n"
        f"\textraHeader = {_in_git_config(f'Authorization: Bearer {bearer.token}')}\n"
    )


def _in_git_config(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


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
