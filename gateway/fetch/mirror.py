"""Mirrors: one bare clone per connection, updated by fetches of exactly the pushed commits.

A mirror is a cache. It may be deleted at any time, and is cloned again when it is missing or broken.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from gateway.errors import FetchError, LocalFailure, ObjectUnusable
from gateway.fetch.credentials import Remote
from gateway.fetch.git import Git
from gateway.fetch.objects import Objects
from gateway.fetch.process import GitFailed, Progress
from gateway.fetch.reasons import is_about_objects, is_redirect, own_words, remote_failure
from gateway.fetch.received import Received
from gateway.fetch.repository import make_repository, object_format
from gateway.fetch.urls import is_ssh
from gateway.text.escape import decode, has_surrogates, printable
from gateway.threads import FILES, GIT

log = structlog.get_logger()

_LOCK_POLL_SECONDS = 0.05
_SHA256_DIGITS = 64
_OBJECT_ID = re.compile(rb"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_NAMED_REFS = 10
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
    # The remote may itself be a shallow clone, which is just as usable.
    "--update-shallow",
)

# Git's messages about the remote and about its own repository.
_NOT_THERE = re.compile(
    r"not our ref|unadvertised object|couldn't find remote ref|no such remote ref", re.IGNORECASE
)
_REF_CONFLICT = re.compile(r"cannot lock ref|exists; cannot create|refname conflict", re.IGNORECASE)
# A lock file of a git that was killed: while we hold our own lock, no other git runs.
_STALE_LOCK = re.compile(r"\.lock': File exists|another git process seems to be running", re.IGNORECASE)
_BROKEN = re.compile(
    r"not a git repository|corrupt|bad object|unable to read|missing (blob|tree|commit)|bad tree"
    r"|cannot be read|does not match index|inflate|invalid object|bad config",
    re.IGNORECASE,
)
_LIST_REFS = ("ls-remote", "--heads", "--tags")
_SUFFIX = ".git"
_UNFINISHED = ".new"
_DAMAGED_IN_A_ROW = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A pushed object, and the full name of the ref that it was pushed to."""

    ref: str
    id: str


@dataclass(frozen=True, slots=True)
class _Transfer:
    """Where a fetch transfers objects to and from, and the callback for its progress."""

    mirror: Path
    remote: Remote
    progress: Progress | None


class Mirrors:
    """The mirrors in one folder."""

    def __init__(self, git: Git, folder: Path) -> None:
        """Keep the mirrors in `folder`, which is created if it is missing."""
        self._git = git
        self._folder = folder
        # URLs that the host answers only with `.git` appended.
        self._suffixed: set[str] = set()

    def path(self, connection: str) -> Path:
        """Return the path of a connection's mirror, whether or not it exists."""
        return self._folder / f"{connection}.git"

    def connections(self) -> list[str]:
        """Return the connections that have a mirror or an unfinished one."""
        return sorted(self.clones())

    def clones(self) -> dict[str, list[Path]]:
        """Return the unfinished clones of each connection that has a mirror or an unfinished one."""
        found: defaultdict[str, list[Path]] = defaultdict(list)
        for path in self._folder.glob("*.git*"):
            unfinished = found[path.name.partition(".git")[0]]
            if path.name.endswith(_UNFINISHED):
                unfinished.append(path)
        return found

    async def update(
        self, *, connection: str, remote: Remote, wanted: Sequence[Wanted], progress: Progress | None = None
    ) -> dict[str, FetchError]:
        """Fetch the wanted objects into the mirror, with at most one fetch if all goes well.

        An object that the remote does not have is no error here: it is missing afterwards. Return the errors
        of single objects, by their ids, if others could be fetched. `progress` is called, in another thread,
        with the progress of a fetch. Raises `FetchError` with a reason if nothing could be fetched.
        """
        if not wanted:
            return {}
        async with self.locked(connection):
            mirror = self.path(connection)
            transfer = _Transfer(mirror, remote, progress)
            try:
                # Two small files: a thread would cost more than reading them.
                if object_format(mirror) == _object_format(wanted):
                    return await self._fetch_missing(transfer, wanted)
            except LocalFailure:
                await FILES.run(_remove_leftovers, mirror)
                raise
            except GitFailed as error:
                if not _is_broken(error):
                    await FILES.run(_remove_leftovers, mirror)
                    raise remote_failure(error) from error
                log.warning("mirror is broken and is cloned again", connection=connection, reason=str(error))
            try:
                return await self._clone(transfer, wanted)
            except GitFailed as error:
                raise remote_failure(error) from error

    async def contains(self, *, connection: str, remote: Remote, wanted: Wanted) -> bool:
        """Return whether the remote's ref now is or contains an object that the mirror has.

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
        """Return the branches and tags of the remote with their ids, by their full names.

        An annotated tag has the id of the tag object; its commit is under the tag's name and `^{}`. Raises
        `RemoteUnavailable`.
        """
        try:
            output = await self._run_remote(remote, *_LIST_REFS, output_limit=_MAX_REFS_BYTES)
        except GitFailed as error:
            raise remote_failure(error) from error
        return _refs(output, remote.url)

    async def default_branch(self, remote: Remote) -> str | None:
        """Return the short name of the branch that the remote's HEAD points to, or None.

        Raises `RemoteUnavailable`.
        """
        try:
            output = await self._run_remote(remote, "ls-remote", "--symref", behind=("HEAD",))
        except GitFailed as error:
            raise remote_failure(error) from error
        found = re.match(rb"ref: refs/heads/([^\t\n]+)\tHEAD", output)
        name = decode(found[1]) if found else None
        return None if name is None or has_surrogates(name) else name

    async def discard(self, connection: str) -> None:
        """Remove a broken mirror; the next update clones it again."""
        async with self.locked(connection):
            await FILES.run(shutil.rmtree, self.path(connection), ignore_errors=True)

    async def missing(self, mirror: Path, ids: Sequence[str]) -> list[str]:
        """Return those of the objects that a mirror does not have."""
        return await self._git.read(mirror, _missing, ids)

    @asynccontextmanager
    async def keeping(self, connection: str) -> AsyncIterator[None]:
        """Keep the git that reads a connection's mirror running within the block, also for its submodules."""
        owner = self._folder / connection
        self._git.sessions.keep(owner)
        try:
            yield
        finally:
            await GIT.run(self._git.sessions.end, owner)

    async def _clone(self, transfer: _Transfer, wanted: Sequence[Wanted]) -> dict[str, FetchError]:
        """Clone under a temporary name, so that a mirror is complete or does not exist."""
        mirror = transfer.mirror
        fresh = mirror.with_name(f"{mirror.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        try:
            await FILES.run(make_repository, fresh, _object_format(wanted))
            failed = await self._fetch_missing(replace(transfer, mirror=fresh), wanted, everything=True)
            await FILES.run(shutil.rmtree, mirror, ignore_errors=True)
            await FILES.run(os.rename, fresh, mirror)
            return failed
        finally:
            await FILES.run(shutil.rmtree, fresh, ignore_errors=True)

    async def _fetch_missing(
        self, transfer: _Transfer, wanted: Sequence[Wanted], *, everything: bool = False
    ) -> dict[str, FetchError]:
        """Fetch missing objects by their ids; if the remote or our own refs reject that, fetch everything.

        The newest id of each ref is stored under the ref: a mirror without refs would download everything
        again.
        """
        ids = list(dict.fromkeys(item.id for item in wanted))
        absent = await self.missing(transfer.mirror, ids)
        if not absent:
            return {}
        newest = {item.ref: item.id for item in wanted}
        is_repeated = False
        try:
            if not everything:
                refs = [ref for ref in newest if newest[ref] in absent]
                specs = [f"+{newest[ref]}:{ref}" for ref in refs]
                everything = not await self._fetched(transfer, specs)
                if not everything and {newest[ref] for ref in refs} == set(absent):
                    return {}
            if everything:
                await self._fetch(transfer, _EVERYTHING, "--prune")
        except GitFailed as error:
            if not _is_about_some_refs(error):
                raise
            if not everything and len(absent) == 1:
                return {absent[0]: remote_failure(error)}
            is_repeated = True
            log.warning(
                "a fetch failed and is repeated ref by ref", mirror=transfer.mirror.name, reason=str(error)
            )
            if everything:
                await self._fetch_default_branch(transfer)
        # Overwritten by a later push before this fetch: no ref leads there, but the id may still be
        # available.
        apart = await self.missing(transfer.mirror, absent)
        places = {newest[ref]: ref for ref in newest} if is_repeated else {}
        return await self._fetch_apart(transfer, apart, places)

    async def _fetch_default_branch(self, transfer: _Transfer) -> None:
        """Fetch the branch that new branches are compared with, if that is possible."""
        branch = await self.default_branch(transfer.remote)
        if branch is not None:
            with contextlib.suppress(GitFailed):
                await self._fetched(transfer, [f"+refs/heads/{branch}:refs/heads/{branch}"])

    async def _fetch_apart(
        self, transfer: _Transfer, ids: Sequence[str], places: Mapping[str, str]
    ) -> dict[str, FetchError]:
        """Fetch each object by itself, to its ref in `places` or to a ref of ours; return the failures."""
        failed: dict[str, FetchError] = {}
        damaged = 0
        for object_id in ids:
            try:
                specs = [f"+{object_id}:{places[object_id]}"] if object_id in places else []
                if not (specs and await self._fetched(transfer, specs)):
                    specs = [f"+{object_id}:refs/pushgate/{object_id}"]
                    await self._fetched(transfer, specs, ours=True)
                damaged = 0
            except GitFailed as error:
                if not _is_about_some_refs(error):
                    raise
                failed[object_id] = remote_failure(error)
                damaged = 0 if isinstance(failed[object_id], ObjectUnusable) else damaged + 1
                if damaged == _DAMAGED_IN_A_ROW:
                    # The remote is broken, not the pushed objects.
                    raise
        return failed

    async def _fetched(self, transfer: _Transfer, specs: Sequence[str], *, ours: bool = False) -> bool:
        """Fetch; return whether the remote had the objects and no ref conflicted; refs of `ours` cannot."""
        try:
            await self._fetch(transfer, specs)
        except GitFailed as error:
            if _is_broken(error):
                raise
            if _NOT_THERE.search(str(error)):
                return False
            if ours or not _REF_CONFLICT.search(own_words(error)):
                raise
            return False
        return True

    async def _fetch(self, transfer: _Transfer, specs: Sequence[str], *options: str) -> None:
        command, remote = (*_FETCH, *options), transfer.remote
        with Received(remote, transfer.progress) as received:
            await self._run_remote(remote, *command, behind=specs, mirror=transfer.mirror, progress=received)

    async def _run_remote(
        self,
        remote: Remote,
        *command: str,
        behind: Sequence[str] = (),
        mirror: Path | None = None,
        progress: Progress | None = None,
        output_limit: int = _MAX_ANSWER_BYTES,
    ) -> bytes:
        """Run a git command with the remote's URL, followed by the arguments `behind`; return its output."""

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

        return await self._with_suffix_if_redirected(remote.url, run)

    async def _with_suffix_if_redirected(self, url: str, run: Callable[[str], Awaitable[bytes]]) -> bytes:
        """Return the output of `run` for the URL that the host accepts.

        GitLab redirects a URL without `.git` to the URL with it. No redirect is followed, but the URL with
        `.git`, on the same host, is tried.
        """
        if url in self._suffixed:
            return await run(_with_suffix(url))
        try:
            return await run(url)
        except GitFailed as error:
            if is_ssh(url) or url.endswith(_SUFFIX) or not is_redirect(error):
                raise
            redirected = error
        try:
            output = await run(_with_suffix(url))
        except GitFailed as error:
            # Not found there either: the error of the original URL is more useful.
            raise redirected if _NOT_FOUND.search(own_words(error)) else error from None
        self._suffixed.add(url)
        return output

    def used_at(self, connection: str) -> float:
        """Return the time of a mirror's last use, in seconds since 1970."""
        try:
            return (self._folder / f"{connection}.lock").stat().st_mtime
        except FileNotFoundError:
            return 0.0  # the lock files were removed

    @asynccontextmanager
    async def locked(self, connection: str) -> AsyncIterator[None]:
        """Hold the connection's lock against other processes; its time stamp is that of the last use."""
        # It is a cache: removing the whole folder, even while we run, costs time and nothing else.
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
    """Remove the unfinished files of a failed fetch, which may be what fills a full disk.

    Call it under the lock, after git has ended.
    """
    for leftover in (mirror / "objects").glob("**/tmp_*"):
        with contextlib.suppress(OSError):  # it must not replace the reason of the failure
            leftover.unlink(missing_ok=True)


def _refs(listed: bytes, url: str) -> dict[str, str]:
    """Return the refs of `git ls-remote`, without those whose names are not UTF-8, which nothing could store.

    Names may contain almost any bytes, including U+2028: only a line feed ends a line.
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
        log.warning(
            "refs passed over: their names are no UTF-8", url=url, count=len(odd), refs=odd[:_MAX_NAMED_REFS]
        )
    return refs


def _is_broken(error: GitFailed) -> bool:
    """Return whether our mirror is broken."""
    return bool(_BROKEN.search(own_words(error)) or _STALE_LOCK.search(str(error)))


def _is_about_some_refs(error: GitFailed) -> bool:
    """Return whether only some of the refs made a fetch fail, so that others may succeed."""
    if _is_broken(error):
        return False
    return is_about_objects(error) or bool(_REF_CONFLICT.search(own_words(error)))


def _missing(objects: Objects, ids: Sequence[str]) -> list[str]:
    headers = objects.headers(ids)
    return [object_id for object_id, header in zip(ids, headers, strict=True) if header is None]


def _object_format(wanted: Sequence[Wanted]) -> str:
    return "sha256" if len(wanted[0].id) == _SHA256_DIGITS else "sha1"
