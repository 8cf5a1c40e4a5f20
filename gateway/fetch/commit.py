"""Reads one commit from a mirror: its author, time, changed paths and valohai.yaml."""

import asyncio
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from gateway.errors import Gone, ObjectUnusable
from gateway.fetch.git import Git, GitFailed, GitTimedOut, LimitReached, OutputTooLarge
from gateway.fetch.limits import GitLimits
from gateway.text.escape import decode

_MAX_COMMIT_BYTES = 1024 * 1024
_SUBMODULE = b"160000"
# An attacker who can push chooses how much differs: a small tree can name more paths than any memory holds,
# and git keeps all of them before it prints the first. The memory limit leaves room for the index of ten
# million objects. Git prints about a hundred bytes beside each path.
_MAX_PATHS_BYTES = 12 * 1024 * 1024
_PATHS_LIMITS = GitLimits(memory=768 * 1024 * 1024, cpu=30)
_PATHS_SECONDS = 30.0
_REGULAR_FILES = {"100644", "100755"}
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
        commit_id, raw = await self._commit(mirror, object_id)
        head, _, message = raw.partition(b"\n\n")
        fields = _fields(head)
        encoding = fields.get("encoding", ["utf-8"])[0]
        author, _ = _person(_decode(fields.get("author", [""])[0], encoding))
        committer, committed_at = _person(_decode(fields.get("committer", [""])[0], encoding))
        parents = tuple(fields.get("parent", ()))
        paths, (manifest, manifest_size), signature = await asyncio.gather(
            self._changed(mirror, commit_id, parents, paths_since),
            self.manifest(mirror, commit_id, yaml_path),
            self._signature(mirror, commit_id, fields),
        )
        return Commit(
            id=commit_id,
            parents=parents,
            author=author,
            committer=committer,
            committed_at=committed_at,
            message=_decode(message.decode("latin-1"), encoding),
            paths=paths,
            manifest=manifest,
            manifest_size=manifest_size,
            signature=signature,
        )

    async def manifest(self, mirror: Path, commit_id: str, yaml_path: str) -> tuple[bytes | None, int | None]:
        """Return the valohai.yaml of a commit that the mirror has, and its size, as in `Commit`.

        A symbolic link does not count as a valohai.yaml and is not followed.
        """
        output = await self._git.run(
            "ls-tree",
            "-z",
            "-l",
            "--full-tree",
            "--end-of-options",
            commit_id,
            "--",
            yaml_path,
            mirror=mirror,
        )
        # Mode, type, id and size, then a tab and the path; empty if there is no such file.
        mode, _, blob, size = output.partition(b"\t")[0].decode().split() or ("", "", "", "0")
        if mode not in _REGULAR_FILES:
            return None, None
        if int(size) > self._manifest_limit:
            return None, int(size)
        return await self._git.run("cat-file", "blob", blob, mirror=mirror), int(size)

    async def _commit(self, mirror: Path, object_id: str) -> tuple[str, bytes]:
        queries = f"{object_id}\n{object_id}^{{commit}}\n".encode()
        kinds = await self._git.run(
            "cat-file",
            "--batch-check=%(objectname) %(objecttype) %(objectsize)",
            mirror=mirror,
            stdin=queries,
        )
        itself, peeled, _ = kinds.decode().split("\n")
        if itself.endswith(" missing"):
            raise Gone(f"the remote no longer has {object_id}")
        if peeled.endswith(" missing"):
            raise ObjectUnusable(f"{object_id} is a {itself.split()[1]} and does not lead to a commit")
        commit_id, _, size = peeled.split()
        if int(size) > _MAX_COMMIT_BYTES:
            raise ObjectUnusable(f"the commit object {commit_id} is too large ({size} bytes)")
        return commit_id, await self._git.run("cat-file", "commit", commit_id, mirror=mirror)

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
        output = await self._git.run(
            "cat-file", "commit", commit_id, mirror=mirror, output_limit=_MAX_COMMIT_BYTES
        )
        parents = tuple(_fields(output.partition(b"\n\n")[0]).get("parent", ()))
        return await self._paths(mirror, commit_id, parents, since)

    async def _changed(
        self, mirror: Path, commit_id: str, parents: tuple[str, ...], since: Base | None
    ) -> Paths | None:
        return None if since is None else await self._paths(mirror, commit_id, parents, since)

    async def _paths(self, mirror: Path, commit_id: str, parents: tuple[str, ...], since: Base) -> Paths:
        options = ("-r", "-z", "--raw", "--no-renames", "--no-commit-id")
        try:
            base = await self._base(mirror, commit_id, parents, since)
            if base is not None and not await self._has(mirror, base):
                return Paths((), complete=False)  # a shallow remote's history ends at this commit
            trees = (base, commit_id) if base else ("--root", commit_id)
            output = await self._git.run(
                *("-c", "core.packedGitLimit=128m"),
                "diff-tree",
                *options,
                *trees,
                mirror=mirror,
                output_limit=_MAX_PATHS_BYTES,
                limits=_PATHS_LIMITS,
                timeout=_PATHS_SECONDS,
            )
        except (OutputTooLarge, LimitReached, GitTimedOut):
            return Paths((), complete=False)
        return Paths(_paths_in(output), complete=True)

    async def _base(self, mirror: Path, commit_id: str, parents: tuple[str, ...], since: Base) -> str | None:
        if since.before is not None and await self._has(mirror, since.before):
            return since.before
        if since.default_branch:
            branch = f"refs/heads/{since.default_branch}"
            try:
                output = await self._git.run(
                    "merge-base", "--end-of-options", branch, commit_id, mirror=mirror, timeout=_PATHS_SECONDS
                )
            except (LimitReached, GitTimedOut):
                raise
            except GitFailed:
                output = b""  # no such branch, or no common history: compare with the parent
            found = output.decode().strip()
            if found and found != commit_id:
                return found
        return parents[0] if parents else None

    async def _has(self, mirror: Path, object_id: str) -> bool:
        output = await self._git.run(
            "cat-file", "--batch-check", mirror=mirror, stdin=f"{object_id}^{{commit}}\n".encode()
        )
        return not output.endswith(b" missing\n")


def _paths_in(listed: bytes) -> tuple[str, ...]:
    """Return the paths of `git diff-tree --raw -z`; the path of a submodule ends in `/`, like a folder's.

    It then matches patterns for the folder, for its contents and for its name.
    """
    # :old-mode new-mode old-id new-id status, NUL, path, NUL
    parts = listed.split(b"\0")
    return tuple(
        decode(path + b"/" if _SUBMODULE in facts[1:].split(b" ")[:2] else path)
        for facts, path in zip(parts[:-1:2], parts[1::2], strict=True)
    )


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
