"""Mirrors: one bare clone per connection, updated by fetches of exactly what was pushed.

A mirror is a cache. It may be deleted at any time, and is made anew when it is missing or broken.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from gateway.errors import FetchError, LocalFailure, ObjectUnusable
from gateway.fetch.credentials import Remote
from gateway.fetch.git import Git, GitFailed, Progress
from gateway.fetch.reasons import is_about_objects, is_redirect, own_words, remote_failure
from gateway.fetch.urls import is_ssh
from gateway.text.escape import decode, has_surrogates, printable
from gateway.threads import FILES

log = structlog.get_logger()

_LOCK_POLL_SECONDS = 0.05
_SHA256_DIGITS = 64
_OBJECT_ID = re.compile(rb"[0-9a-f]{40}|[0-9a-f]{64}")
_NAMED = 10
_NOT_FOUND = re.compile(r"not found|error: 404", re.IGNORECASE)
_MAX_ANSWER_BYTES = 8 * 1024 * 1024
# About half a million refs.
_MAX_REFS_BYTES = 64 * 1024 * 1024
_EVERYTHING = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_FETCH = (
    "fetch",
    "--progress",
    "--force",
    "--no-tags",
    "--no-write-fetch-head",
    "--no-auto-maintenance",
    "--no-recurse-submodules",
    # A remote that is itself a shallow clone: its history is shorter, and no less usable.
    "--update-shallow",
)

# Git's own words: what it says of a remote, and of its own repository.
_NOT_THERE = re.compile(
    r"not our ref|unadvertised object|couldn't find remote ref|no such remote ref", re.IGNORECASE
)
_REF_CONFLICT = re.compile(r"cannot lock ref|exists; cannot create|refname conflict", re.IGNORECASE)
# Left by a git that was killed: under our own lock there is no other.
_STALE_LOCK = re.compile(r"\.lock': File exists|another git process seems to be running", re.IGNORECASE)
_BROKEN = re.compile(
    r"not a git repository|corrupt|bad object|unable to read|missing (blob|tree|commit)|bad tree"
    r"|cannot be read|does not match index|inflate|invalid object|bad config",
    re.IGNORECASE,
)
_LIST_REFS = ("ls-remote", "--heads", "--tags")
_SUFFIX = ".git"
_DAMAGED_IN_A_ROW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An object that was pushed, and the full name of the ref it was pushed to."""

    ref: str
    id: str


class Mirrors:
    """The mirrors in one folder."""

    def __init__(self, git: Git, folder: Path) -> None:
        """Keep the mirrors in `folder`, which is made if need be."""
        self._git = git
        self._folder = folder
        # URLs that are answered only with `.git` behind them.
        self._suffixed: set[str] = set()

    def path(self, connection: str) -> Path:
        """Return where a connection's mirror is, or would be."""
        return self._folder / f"{connection}.git"

    def connections(self) -> list[str]:
        """Return the connections that have a mirror, or the beginnings of one."""
        return sorted({found.name.partition(".git")[0] for found in self._folder.glob("*.git*")})

    async def update(
        self, *, connection: str, remote: Remote, wanted: Sequence[Wanted], progress: Progress | None = None
    ) -> dict[str, FetchError]:
        """Bring the wanted objects into the mirror, with at most one fetch where all goes well.

        What the remote does not have is not there afterwards; that is no error here. Returns what kept single
        objects, by their ids, from being fetched while others could be. `progress` is told, in another
        thread, how a fetch goes. Raises `FetchError` with a reason where nothing could be fetched.
        """
        if not wanted:
            return {}
        async with self.locked(connection):
            mirror = self.path(connection)
            try:
                if await self._is_usable(mirror, wanted):
                    return await self._bring(mirror, remote, wanted, progress)
            except LocalFailure:
                await FILES.run(_remove_leftovers, mirror)
                raise
            except GitFailed as error:
                if not _is_broken(error):
                    await FILES.run(_remove_leftovers, mirror)
                    raise remote_failure(error) from error
                log.warning("mirror is broken and is made anew", connection=connection, reason=str(error))
            try:
                return await self._make(mirror, remote, wanted, progress)
            except GitFailed as error:
                raise remote_failure(error) from error

    async def contains(self, *, connection: str, remote: Remote, wanted: Wanted) -> bool:
        """Say whether the remote's ref, as it is now, is or contains an object that the mirror has.

        Raises `RemoteUnavailable`.
        """
        now = (await self.remote_refs(remote)).get(wanted.ref)
        try:
            if now is None or now == wanted.id:
                return now == wanted.id
            current = Wanted(ref=wanted.ref, id=now)
            failed = await self.update(connection=connection, remote=remote, wanted=[current])
            if now in failed:
                raise failed[now]
            beyond = ("rev-list", "--max-count=1", wanted.id, "--not", now)
            return not await self._git.run(*beyond, mirror=self.path(connection))
        except GitFailed as error:
            raise remote_failure(error) from error

    async def remote_refs(self, remote: Remote) -> dict[str, str]:
        """Return the branches and tags of the remote, by their full names; an annotated tag's own object.

        Peeled tags stand beside them under the tag's name and `^{}`. Raises `RemoteUnavailable`.
        """
        try:
            told = await self._ask(remote, *_LIST_REFS, output_limit=_MAX_REFS_BYTES)
        except GitFailed as error:
            raise remote_failure(error) from error
        return _refs(told, remote.url)

    async def default_branch(self, remote: Remote) -> str | None:
        """Return the short name of the branch that the remote's HEAD is; None where it has none.

        Raises `RemoteUnavailable`.
        """
        try:
            told = await self._ask(remote, "ls-remote", "--symref", behind=("HEAD",))
        except GitFailed as error:
            raise remote_failure(error) from error
        found = re.match(rb"ref: refs/heads/([^\t\n]+)\tHEAD", told)
        name = decode(found[1]) if found else None
        return None if name is None or has_surrogates(name) else name

    async def discard(self, connection: str) -> None:
        """Remove a mirror that turned out to be broken; the next update makes it anew."""
        async with self.locked(connection):
            await FILES.run(shutil.rmtree, self.path(connection), ignore_errors=True)

    async def missing(self, mirror: Path, ids: Sequence[str]) -> list[str]:
        """Return which of these objects a mirror does not have."""
        asked = "".join(f"{one}\n" for one in ids).encode()
        told = await self._git.run("cat-file", "--batch-check=%(objectname)", mirror=mirror, stdin=asked)
        lines = told.decode().split("\n")[:-1]
        return [one for one, line in zip(ids, lines, strict=True) if line.endswith(" missing")]

    async def _is_usable(self, mirror: Path, wanted: Sequence[Wanted]) -> bool:
        """Say whether there is a mirror for ids of this length."""
        if not await FILES.run((mirror / "HEAD").exists):
            return False
        told = await self._git.run("rev-parse", "--show-object-format", mirror=mirror)
        return told.decode().strip() == _object_format(wanted)

    async def _make(
        self, mirror: Path, remote: Remote, wanted: Sequence[Wanted], progress: Progress | None
    ) -> dict[str, FetchError]:
        """Clone under another name, so that a mirror is there whole or not at all."""
        fresh = mirror.with_name(f"{mirror.name}.{secrets.token_hex(4)}.new")
        try:
            await self._git.run(
                "init",
                "--quiet",
                "--bare",
                "--template=",
                f"--object-format={_object_format(wanted)}",
                str(fresh),
            )
            failed = await self._bring(fresh, remote, wanted, progress, everything=True)
            await FILES.run(shutil.rmtree, mirror, ignore_errors=True)
            await FILES.run(os.rename, fresh, mirror)
            return failed
        finally:
            await FILES.run(shutil.rmtree, fresh, ignore_errors=True)

    async def _bring(
        self,
        mirror: Path,
        remote: Remote,
        wanted: Sequence[Wanted],
        progress: Progress | None,
        *,
        everything: bool = False,
    ) -> dict[str, FetchError]:
        """Fetch what is missing: by its id, or, where the remote or our own refs object, all that there is.

        The newest id of each ref is kept under the ref: a mirror without refs would download all again.
        """
        ids = list(dict.fromkeys(one.id for one in wanted))
        absent = await self.missing(mirror, ids)
        if not absent:
            return {}
        newest = {one.ref: one.id for one in wanted}
        is_repeated = False
        try:
            if not everything:
                specs = [f"+{newest[ref]}:{ref}" for ref in newest if newest[ref] in absent]
                everything = not await self._fetched(mirror, remote, specs, progress)
            if everything:
                command = (*_FETCH, "--prune")
                await self._ask(remote, *command, behind=_EVERYTHING, mirror=mirror, progress=progress)
        except GitFailed as error:
            if not _may_be_had_apart(error):
                raise
            if not everything and len(absent) == 1:
                return {absent[0]: remote_failure(error)}
            is_repeated = True
            log.warning("a fetch failed and is repeated ref by ref", mirror=mirror.name, reason=str(error))
            if everything:
                await self._fetch_default_branch(mirror, remote, progress)
        # Pushed, and pushed over before we looked: no ref leads there any more, but its id may still be had.
        apart = await self.missing(mirror, absent)
        places = {newest[ref]: ref for ref in newest} if is_repeated else {}
        return await self._fetch_apart(mirror, remote, apart, places, progress)

    async def _fetch_default_branch(self, mirror: Path, remote: Remote, progress: Progress | None) -> None:
        """Fetch the branch that new branches are compared with, if it can be had."""
        branch = await self.default_branch(remote)
        if branch is not None:
            with contextlib.suppress(GitFailed):
                await self._fetched(mirror, remote, [f"+refs/heads/{branch}:refs/heads/{branch}"], progress)

    async def _fetch_apart(
        self,
        mirror: Path,
        remote: Remote,
        ids: Sequence[str],
        places: Mapping[str, str],
        progress: Progress | None,
    ) -> dict[str, FetchError]:
        """Fetch each object by itself, to its ref in `places` or to one of ours; return what failed."""
        failed: dict[str, FetchError] = {}
        damaged = 0
        for one in ids:
            try:
                specs = [f"+{one}:{places[one]}"] if one in places else []
                if not (specs and await self._fetched(mirror, remote, specs, progress)):
                    await self._fetched(mirror, remote, [f"+{one}:refs/pushgate/{one}"], progress, ours=True)
                damaged = 0
            except GitFailed as error:
                if not _may_be_had_apart(error):
                    raise
                failed[one] = remote_failure(error)
                damaged = 0 if isinstance(failed[one], ObjectUnusable) else damaged + 1
                if damaged == _DAMAGED_IN_A_ROW:
                    # It is the remote that is broken, and not what was pushed.
                    raise
        return failed

    async def _fetched(
        self,
        mirror: Path,
        remote: Remote,
        specs: Sequence[str],
        progress: Progress | None,
        *,
        ours: bool = False,
    ) -> bool:
        """Fetch; say whether the remote had it and our refs took it. Refs of our own naming always do."""
        try:
            await self._ask(remote, *_FETCH, behind=specs, mirror=mirror, progress=progress)
        except GitFailed as error:
            if _is_broken(error):
                raise
            if _NOT_THERE.search(str(error)):
                return False
            if ours or not _REF_CONFLICT.search(own_words(error)):
                raise
            return False
        return True

    async def _ask(
        self,
        remote: Remote,
        *command: str,
        behind: Sequence[str] = (),
        mirror: Path | None = None,
        progress: Progress | None = None,
        output_limit: int = _MAX_ANSWER_BYTES,
    ) -> bytes:
        """Run a git command with the remote's URL, and what stands `behind` that; return its output.

        GitLab redirects a URL without `.git` to the one with it. No redirect is followed, but this one place
        on the same host is tried.
        """

        async def run(url: str) -> bytes:
            return await self._git.run(
                *command,
                "--end-of-options",
                url,
                *behind,
                mirror=mirror,
                progress=progress,
                output_limit=output_limit,
                remote=replace(remote, url=url),
            )

        if remote.url in self._suffixed:
            return await run(_with_suffix(remote.url))
        try:
            return await run(remote.url)
        except GitFailed as error:
            if is_ssh(remote.url) or remote.url.endswith(_SUFFIX) or not is_redirect(error):
                raise
            redirected = error
        try:
            told = await run(_with_suffix(remote.url))
        except GitFailed as error:
            # Nothing there: what the remote said of the URL as it is tells more.
            raise redirected if _NOT_FOUND.search(own_words(error)) else error from None
        self._suffixed.add(remote.url)
        return told

    def used_at(self, connection: str) -> float:
        """Return when a mirror was used last, in seconds since 1970."""
        try:
            return (self._folder / f"{connection}.lock").stat().st_mtime
        except FileNotFoundError:
            return 0.0  # somebody has removed the locks

    @asynccontextmanager
    async def locked(self, connection: str) -> AsyncIterator[None]:
        """Hold the connection's lock, which other processes on this folder respect; it tells the last use."""
        # It is a cache: whoever removes the whole folder, also while we run, loses time and nothing else.
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            self._folder / f"{connection}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_LOCK_POLL_SECONDS)
            os.utime(descriptor)
            yield
        finally:
            os.close(descriptor)


def _with_suffix(url: str) -> str:
    return url.rstrip("/") + _SUFFIX


def _remove_leftovers(mirror: Path) -> None:
    """Remove what a fetch that failed has left half written: on a full disk that is what fills it.

    To be called under the lock, when git has ended.
    """
    for left in (mirror / "objects").glob("**/tmp_*"):
        with contextlib.suppress(OSError):  # it must not take the place of the reason
            left.unlink(missing_ok=True)


def _refs(listed: bytes, url: str) -> dict[str, str]:
    """Return the refs of `git ls-remote`, less those that no delivery, message or database could name.

    A name may hold any bytes but a few, also U+2028 and the like: only a line feed ends a line.
    """
    refs: dict[str, str] = {}
    odd: list[str] = []
    for line in listed.split(b"\n"):
        object_id, _, name = line.partition(b"\t")
        ref = decode(name)
        if not _OBJECT_ID.fullmatch(object_id) or has_surrogates(ref):
            odd += [printable(ref)] if line else []
        else:
            refs[ref] = object_id.decode()
    if odd:
        log.warning("refs passed over: their names are no UTF-8", url=url, count=len(odd), refs=odd[:_NAMED])
    return refs


def _is_broken(error: GitFailed) -> bool:
    """Say whether it is our mirror that is broken."""
    return bool(_BROKEN.search(own_words(error)) or _STALE_LOCK.search(str(error)))


def _may_be_had_apart(error: GitFailed) -> bool:
    """Say whether a fetch failed over some of what was fetched, so that other refs may still be had."""
    if _is_broken(error):
        return False
    return is_about_objects(error) or bool(_REF_CONFLICT.search(own_words(error)))


def _object_format(wanted: Sequence[Wanted]) -> str:
    return "sha256" if len(wanted[0].id) == _SHA256_DIGITS else "sha1"
