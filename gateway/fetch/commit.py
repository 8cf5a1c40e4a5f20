"""Reads one commit from a mirror: its author, time, changed paths and valohai.yaml."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from gateway.errors import Gone, ObjectUnusable
from gateway.fetch import trees
from gateway.fetch.git import Git
from gateway.fetch.objects import Objects
from gateway.fetch.process import GitFailed, GitTimedOut, LimitReached, OutputTooLarge
from gateway.text.escape import decode

_MAX_COMMIT_BYTES = 1024 * 1024
# An attacker who can push chooses how much differs: a small tree can name more paths than any memory holds.
_MAX_PATHS_BYTES = 12 * 1024 * 1024
_BYTES_BESIDE_A_PATH = 100
_PATHS_SECONDS = 30.0
_SSH_SIGNATURE = "-----BEGIN SSH SIGNATURE-----"
_PERSON = re.compile(r"(?P<person>.*>) (?P<seconds>-?\d{1,12}) [+-]\d{4}")
# Encodings that people write text in. Python has further codecs that turn text into something else (utf-7,
# unicode_escape) or that fail on any input (undefined).
_ENCODING = re.compile(
    r"utf-?8|us-ascii|ascii|latin-?\d+|iso[-_]?8859[-_]\d+|(windows|cp)-?\d+|koi8-?[ru]|mac-?roman"
    r"|euc[-_]?(jp|kr)|(shift[-_]?|s)jis|iso-2022-(jp|kr)|gbk|gb2312|gb18030|big5",
    re.IGNORECASE,
)

Signature = Literal["valid", "unknown", "none"]


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths that a push changed; `complete` is False if they were too many to list."""

    names: tuple[str, ...]
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a commit is compared with: the ref's previous commit, or the default branch for a new branch."""

    before: str | None
    default_branch: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A commit as it is in git.

    `author` and `committer` are names with addresses; times are aware UTC. `paths` is None if they were not
    requested. `signature` is `valid` if one of the operator's allowed signers signed with an ssh key, and
    `unknown` if the signer cannot be determined. `manifest_size` is None if the commit has no valohai.yaml;
    `manifest` is None then, and if the file is too large.
    """

    id: str
    parents: tuple[str, ...]
    author: str
    committer: str
    committed_at: datetime
    message: str
    paths: "Paths | None"
    manifest: bytes | None
    manifest_size: int | None
    signature: Signature


class CommitReader:
    """Reads commits. `manifest_limit` is the size in bytes of the largest valohai.yaml that is read.

    `signers` is a file of allowed signers: https://man.openbsd.org/ssh-keygen.1#ALLOWED_SIGNERS
    """

    def __init__(self, git: Git, *, manifest_limit: int, signers: Path | None = None) -> None:
        """Read with this git."""
        self._git = git
        self._signers = signers
        self._manifest_limit = manifest_limit

    async def read(self, mirror: Path, *, object_id: str, yaml_path: str, paths_since: Base | None) -> Commit:
        """Return the commit that an object id leads to, through an annotated tag if there is one.

        Changed paths are read if `paths_since` is given. Raises `Gone` if the mirror does not have the
        object, `ObjectUnusable` if it does not lead to a commit.
        """
        read = await self._git.read(
            mirror, _read, object_id, yaml_path, since=paths_since, manifest_limit=self._manifest_limit
        )
        encoding = read.fields.get("encoding", ["utf-8"])[0]
        author, _ = _person(_decode(read.fields.get("author", [""])[0], encoding))
        committer, committed_at = _person(_decode(read.fields.get("committer", [""])[0], encoding))
        paths = read.paths
        if paths_since is not None and paths is None:
            paths = await self._since_branch(mirror, read, paths_since)
        return Commit(
            id=read.commit,
            parents=read.parents,
            author=author,
            committer=committer,
            committed_at=committed_at,
            message=_decode(read.message.decode("latin-1"), encoding),
            paths=paths,
            manifest=read.manifest,
            manifest_size=read.manifest_size,
            signature=await self._signature(mirror, read.commit, read.fields),
        )

    async def manifest(self, mirror: Path, commit_id: str, yaml_path: str) -> tuple[bytes | None, int | None]:
        """Return the valohai.yaml of a commit that the mirror has, and its size, as in `Commit`.

        A symbolic link does not count as a valohai.yaml and is not followed.
        """
        return await self._git.read(
            mirror, _manifest, f"{commit_id}^{{tree}}", yaml_path, limit=self._manifest_limit
        )

    async def _signature(self, mirror: Path, commit_id: str, fields: Mapping[str, list[str]]) -> Signature:
        signature = fields.get("gpgsig") or fields.get("gpgsig-sha256")
        if signature is None:
            return "none"
        # Only ssh signatures: gpg is another program, with a trust model of its own, on untrusted bytes.
        if self._signers is None or not signature[0].startswith(_SSH_SIGNATURE):
            return "unknown"
        allowed = ("-c", f"gpg.ssh.allowedSignersFile={self._signers}")
        try:
            await self._git.run(*allowed, "verify-commit", "--end-of-options", commit_id, mirror=mirror)
        except GitFailed:
            return "unknown"
        return "valid"

    async def paths(self, mirror: Path, commit_id: str, since: Base) -> Paths:
        """Return the paths that a commit in the mirror changed. Raises `GitFailed`."""
        read = await self._git.read(mirror, _read_paths, commit_id, since)
        return read.paths or await self._since_branch(mirror, read, since)

    async def _since_branch(self, mirror: Path, read: "_Read", since: Base) -> Paths:
        """Return the changed paths of a new branch since it left the default branch."""
        branch = f"refs/heads/{since.default_branch}"
        try:
            output = await self._git.run(
                "merge-base", "--end-of-options", branch, read.commit, mirror=mirror, timeout=_PATHS_SECONDS
            )
        except (LimitReached, GitTimedOut):
            return Paths((), complete=False)
        except GitFailed:
            output = b""  # no such branch, or no common history: compare with the parent
        found = output.decode().strip()
        if found and found != read.commit:
            return await self._git.read(mirror, _changed, found, read.commit)
        return await self._git.read(mirror, _since_parent, read)


@dataclass(slots=True)
class _Read:
    """What was read of a commit; `paths` is None if they were not requested or need the default branch."""

    commit: str
    fields: Mapping[str, list[str]]
    message: bytes
    manifest: bytes | None = None
    manifest_size: int | None = None
    paths: Paths | None = None

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(self.fields.get("parent", ()))


def _read(
    objects: Objects, object_id: str, yaml_path: str, *, since: Base | None, manifest_limit: int
) -> _Read:
    """Read a commit, and its paths unless that needs the default branch."""
    read = _read_commit(objects, object_id)
    tree = f"{read.commit}^{{tree}}"
    read.manifest, read.manifest_size = _manifest(objects, tree, yaml_path, limit=manifest_limit)
    if since is not None:
        read.paths = _paths(objects, read, since)
    return read


def _read_commit(objects: Objects, object_id: str) -> _Read:
    itself, peeled = objects.headers([object_id, f"{object_id}^{{commit}}"])
    if itself is None:
        raise Gone(f"the remote no longer has {object_id}")
    if peeled is None:
        raise ObjectUnusable(f"{object_id} is a {itself.kind} and does not lead to a commit")
    if peeled.size > _MAX_COMMIT_BYTES:
        raise ObjectUnusable(f"the commit object {peeled.id} is too large ({peeled.size} bytes)")
    raw = objects.content(peeled.id, kind="commit", limit=_MAX_COMMIT_BYTES)
    head, _, message = raw.partition(b"\n\n")
    return _Read(peeled.id, _fields(head), message)


def _read_paths(objects: Objects, commit_id: str, since: Base) -> _Read:
    read = _read_commit(objects, commit_id)
    read.paths = _paths(objects, read, since)
    return read


def _manifest(objects: Objects, tree: str, yaml_path: str, *, limit: int) -> tuple[bytes | None, int | None]:
    try:
        found = trees.find(objects, tree, yaml_path.encode())
    except OutputTooLarge as error:
        raise ObjectUnusable(f"{yaml_path} cannot be read: {error}") from error
    if found is None or found.mode & trees.KIND != trees.REGULAR:
        return None, None
    [header] = objects.headers([found.id])
    if header is not None and header.size > limit:
        return None, header.size
    content = objects.content(found.id, limit=limit)
    return content, len(content)


def _paths(objects: Objects, read: _Read, since: Base) -> Paths | None:
    """Return the changed paths; None if that needs the default branch."""
    if since.before is not None and _has(objects, since.before):
        return _changed(objects, since.before, read.commit)
    return None if since.default_branch else _since_parent(objects, read)


def _since_parent(objects: Objects, read: _Read) -> Paths:
    parent = read.parents[0] if read.parents else None
    if parent is not None and not _has(objects, parent):
        return Paths((), complete=False)  # a shallow remote's history ends at this commit
    return _changed(objects, parent, read.commit)


def _has(objects: Objects, object_id: str) -> bool:
    [header] = objects.headers([f"{object_id}^{{commit}}"])
    return header is not None


def _changed(objects: Objects, base: str | None, commit_id: str) -> Paths:
    """Return the paths that differ between two commits. Afterwards `objects` may be of no further use.

    The path of a submodule ends in `/`, like a folder's. It then matches patterns for the folder, for its
    contents and for its name.
    """
    budget = trees.Budget(size=_MAX_PATHS_BYTES, beside=_BYTES_BESIDE_A_PATH, seconds=_PATHS_SECONDS)
    before = None if base is None else f"{base}^{{tree}}"
    objects.shorten(_PATHS_SECONDS)
    try:
        changes = trees.compare(objects, before, f"{commit_id}^{{tree}}", budget)
    except (OutputTooLarge, LimitReached, GitTimedOut):
        return Paths((), complete=False)
    names = (
        change.path + b"/" if trees.GITLINK in {change.old_mode, change.mode} else change.path
        for change in changes
    )
    return Paths(tuple(map(decode, names)), complete=True)


def _fields(head: bytes) -> dict[str, list[str]]:
    """Return the header fields of a commit object, without continuation lines, which begin with a space.

    The values are latin-1 text, which keeps every byte: the real encoding is one of the fields.
    """
    fields: dict[str, list[str]] = {}
    for line in head.decode("latin-1").split("\n"):
        if not line.startswith(" "):
            name, _, value = line.partition(" ")
            fields.setdefault(name, []).append(value)
    return fields


def _person(line: str) -> tuple[str, datetime]:
    """Return the name with the address, and the time; accept malformed lines, which old tools wrote."""
    found = _PERSON.fullmatch(line)
    if found is None:
        return line, datetime.fromtimestamp(0, UTC)
    try:
        return found["person"], datetime.fromtimestamp(int(found["seconds"]), UTC)
    except (ValueError, OverflowError):
        return found["person"], datetime.fromtimestamp(0, UTC)


def _decode(latin: str, encoding: str) -> str:
    raw = latin.encode("latin-1")
    if _ENCODING.fullmatch(encoding):
        with contextlib.suppress(UnicodeDecodeError, LookupError):
            return raw.decode(encoding)
    return raw.decode("utf-8", "replace")
