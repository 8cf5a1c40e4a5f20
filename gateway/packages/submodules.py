"""Reads `.gitmodules`, and fetches submodules. Anybody who can push writes that file, so it is not trusted.

Git's own parser reads it, without includes. Only https and ssh URLs of allowed hosts are accepted. Its other
settings, such as branches and update commands, are ignored: the tree records the commit.
https://git-scm.com/docs/gitmodules
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from gateway.errors import Invalid, ObjectUnusable
from gateway.fetch.credentials import Remote, SshKey, without_user
from gateway.fetch.git import Git
from gateway.fetch.mirror import Mirrors, Wanted
from gateway.fetch.objects import Objects
from gateway.fetch.process import GitFailed, GitTimedOut, OutputTooLarge
from gateway.fetch.urls import check_url, is_ssh, target

FILE = b".gitmodules"
_MAX_GITMODULES_BYTES = 1024 * 1024
_RELATIVE = ("./", "../")
_ROOT = re.compile(r"(?P<root>[a-z]+://[^/]+/|[^/:]+:)(?P<path>.*)")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BAD_LINE = re.compile(r"bad config line (\d+)")
_PASSWORD = re.compile(r"(?<=://)[^/\s@]*@")
_URL_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleConfig:
    """A submodule in `.gitmodules`. `is_checked_out` is False for `update = none`."""

    url: str | None
    is_checked_out: bool


class Submodules:
    """Fetches the submodules of a connection, each URL into a mirror of its own."""

    def __init__(
        self, mirrors: Mirrors, connection: str, remote_of: Callable[[str], Awaitable[Remote]]
    ) -> None:
        """Keep them beside the connection's own mirror. `remote_of` returns the remote of a URL."""
        self._mirrors = mirrors
        self._connection = connection
        self._remote_of = remote_of
        self.mirrors_used: list[str] = []

    async def fetch(self, url: str, commit: str) -> Path:
        """Fetch a commit into the mirror of a URL; return the path of the mirror.

        Raises `RemoteUnavailable`, or `ObjectUnusable` if the remote does not have the commit.
        """
        name = f"{self._connection}-{sha256(url.encode()).hexdigest()[:_URL_DIGITS]}"
        wanted = Wanted(ref=f"refs/pushgate/{commit}", id=commit)
        remote = await self._remote_of(url)
        failed = await self._mirrors.update(connection=name, remote=remote, wanted=[wanted])
        if commit in failed:
            raise failed[commit]
        mirror = self._mirrors.path(name)
        if await self._mirrors.missing(mirror, [commit]):
            raise ObjectUnusable(
                f"its remote has no commit {commit}: push that first, then send this push again"
            )
        self.mirrors_used.append(name)
        return mirror


def submodule_remote(parent: Remote, url: str) -> Remote:
    """Return a submodule's remote: an ssh key is used on any host, a password only on its own host."""
    is_same_host = target(parent.url) == target(url)
    is_usable = is_ssh(url) if isinstance(parent.credentials, SshKey) else is_same_host
    return Remote(
        url=url,
        credentials=parent.credentials if is_usable else None,
        host_keys=parent.host_keys if is_same_host else None,
    )


async def read_modules(git: Git, mirror: Path, blob: str) -> Mapping[bytes, ModuleConfig]:
    """Return the submodules in `.gitmodules`, by path.

    Raises `ObjectUnusable` if it is not a valid configuration, `GitFailed` if the mirror is broken.
    """
    try:
        text = await git.read(mirror, Objects.content, blob, limit=_MAX_GITMODULES_BYTES)
        listed = await _list_config(git, mirror, text)
    except OutputTooLarge as error:
        raise ObjectUnusable(".gitmodules is too large to be read") from error
    sections: dict[bytes, dict[bytes, bytes]] = {}
    for item in listed.split(b"\0"):
        key, _, value = item.partition(b"\n")
        section, _, variable = key.rpartition(b".")
        if section.startswith(b"submodule."):
            sections.setdefault(section, {})[variable] = value
    return {
        found[b"path"].rstrip(b"/"): ModuleConfig(
            url=found[b"url"].decode("utf-8", "replace") if b"url" in found else None,
            is_checked_out=found.get(b"update") != b"none",
        )
        for found in sections.values()
        if b"path" in found
    }


async def _list_config(git: Git, mirror: Path, text: bytes) -> bytes:
    """Return git's list of the variables in a configuration. Raises `ObjectUnusable` or `GitFailed`."""
    try:
        # From standard input and without includes: a pushed file must not name files of this machine. Git
        # skips a byte order mark in a file, but not in a blob.
        return await git.run(
            "config",
            "--file=-",
            "--no-includes",
            "--list",
            "-z",
            mirror=mirror,
            stdin=text.removeprefix(_BYTE_ORDER_MARK),
            output_limit=2 * _MAX_GITMODULES_BYTES,
        )
    except (GitTimedOut, OutputTooLarge):
        raise
    except GitFailed as error:
        found = _BAD_LINE.search(str(error))
        if found is None:
            raise
        # Git's own message may quote the file, so only the line number is repeated.
        raise ObjectUnusable(
            f".gitmodules cannot be read: line {found[1]} is not valid git configuration"
        ) from None


def submodule_url(url: str, *, parent: str, allow_http: bool, hosts: tuple[str, ...]) -> str:
    """Return the URL to fetch a submodule from; one that begins with `./` or `../` is relative to `parent`.

    Raises `Invalid`, with one sentence and without credentials, for a URL that must not be fetched from.
    """
    absolute = without_user(_resolved(url, parent) if url.startswith(_RELATIVE) else url)
    try:
        check_url(absolute, allow_http=allow_http, hosts=hosts)
    except Invalid as error:
        raise Invalid(f"{_PASSWORD.sub('', absolute)!r}: {str(error).removeprefix('url: ')}") from error
    return absolute


def _resolved(url: str, parent: str) -> str:
    found = _ROOT.fullmatch(parent)
    if found is None:
        raise Invalid(f"{url!r}: it is relative to a URL that has no path")
    folders = [part for part in found["path"].split("/") if part]
    while url.startswith(_RELATIVE):
        step, _, url = url.partition("/")
        if step == "..":
            if not folders:
                raise Invalid(f"{url!r}: its relative URL leads out of the host")
            folders.pop()
    # In git's short form a path that begins with a slash is not below the home folder.
    root = found["root"] + ("/" if found["path"].startswith("/") else "")
    return root + "/".join([*folders, url.rstrip("/")])
