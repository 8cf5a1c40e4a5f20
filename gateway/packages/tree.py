"""The contents of a package: the entries of a commit and its submodules, without those in `.vhignore`."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import Invalid, ObjectUnusable, RemoteRefuses, RemoteUnavailable
from gateway.fetch.git import Git
from gateway.fetch.objects import Objects
from gateway.fetch.process import OutputTooLarge
from gateway.fetch.trees import EXECUTABLE, GITLINK, KIND, REGULAR, Budget, compare
from gateway.packages.submodules import FILE, read_modules, submodule_url
from gateway.packages.vhignore import MAX_RULES_BYTES, Rules
from gateway.text.escape import decode, printable
from gateway.threads import PLANNING

# About 400,000 files: as much as `git ls-tree` prints.
_MAX_LISTING_BYTES = 32 * 1024 * 1024
_BYTES_BESIDE_A_PATH = 54
_LISTING_SECONDS = 300.0
_MAX_DEPTH = 10
_MAX_SUBMODULES = 100

Fetch = Callable[[str, str], Awaitable[Path]]
"""Fetches a commit (the second argument) of a URL (the first) into a mirror; returns its path."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, a link, or the empty folder of an unpacked submodule. `source` is the index of its mirror."""

    path: bytes
    mode: int
    id: str
    source: int

    @property
    def is_executable(self) -> bool:
        """Return whether a file is executable."""
        return bool(self.mode & EXECUTABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A submodule that is part of the package."""

    path: str
    url: str
    commit: str


@dataclass(slots=True)
class Tree:
    """The entries of a package; at the end they are sorted by their paths. `sources` are mirrors."""

    entries: list[Entry] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    modules: list[Module] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def leave_empty(self, path: bytes, commit: str, *, why: str) -> None:
        """Add the empty folder of a submodule that is not packed."""
        self.warnings.append(f"{shown(path)} is a submodule {why}; its folder is empty")
        self.entries.append(Entry(path, GITLINK, commit, 0))


@dataclass(frozen=True, slots=True)
class _Part:
    """A commit to list, and its place in the package."""

    mirror: Path
    commit: str
    url: str
    prefix: bytes
    depth: int


class TreeReader:
    """Reads trees. Submodules are fetched only from `hosts`, or from any host if it is empty."""

    def __init__(self, git: Git, *, allow_http: bool, hosts: tuple[str, ...]) -> None:
        """Read with this git."""
        self._git = git
        self._allow_http = allow_http
        self._hosts = hosts

    async def read(
        self, mirror: Path, *, commit: str, url: str, fetch: Fetch, manifest: str | None = None
    ) -> Tree:
        """Return the tree of a commit that the mirror has.

        The file at the path `manifest` is part of it even if `.vhignore` excludes it or its folder.

        Raises `ObjectUnusable` if the tree cannot be packed, `RemoteUnavailable` if a submodule cannot be
        fetched for now, `GitFailed` if a mirror is broken.
        """
        tree = Tree()
        rules: Rules | None = None
        kept = None if manifest is None else manifest.encode()
        waiting = [_Part(mirror, commit, url, b"", 0)]
        while waiting:
            part = waiting.pop(0)
            listing, text = await self._git.read(part.mirror, _list, part.commit, with_rules=rules is None)
            if rules is None:
                rules = Rules(text)
            links = await PLANNING.run(_take, tree, part, listing, rules, kept)
            waiting += await self._modules(tree, part, listing, links, fetch)
        tree.entries.sort(key=lambda entry: entry.path)
        tree.modules.sort(key=lambda module: module.path)
        return tree

    async def _modules(
        self,
        tree: Tree,
        part: _Part,
        listing: dict[bytes, tuple[int, str]],
        links: list[tuple[bytes, str]],
        fetch: Fetch,
    ) -> list[_Part]:
        """Fetch the submodules of a part; return their parts, which remain to be listed."""
        if not links:
            return []
        mode, blob = listing.get(FILE, (0, ""))
        known = await read_modules(self._git, part.mirror, blob) if mode & KIND == REGULAR else {}
        found = []
        for path, commit in links:
            whole = part.prefix + path
            module = known.get(path)
            if module is None or module.url is None:
                tree.leave_empty(whole, commit, why="that .gitmodules does not name")
            elif not module.is_checked_out:
                tree.leave_empty(whole, commit, why="with `update = none` in .gitmodules")
            else:
                found.append(await self._fetched(tree, part, whole, module.url, commit, fetch))
        return found

    async def _fetched(
        self, tree: Tree, part: _Part, path: bytes, url: str, commit: str, fetch: Fetch
    ) -> _Part:
        """Fetch a submodule of a part, add it to the tree's modules, and return it."""
        name = shown(path)
        if part.depth == _MAX_DEPTH or len(tree.modules) == _MAX_SUBMODULES:
            raise ObjectUnusable(
                f"submodule {name}: at most {_MAX_SUBMODULES} submodules, {_MAX_DEPTH} deep, are packed"
            )
        try:
            url = submodule_url(url, parent=part.url, allow_http=self._allow_http, hosts=self._hosts)
            mirror = await fetch(url, commit)
        except Invalid as error:
            raise ObjectUnusable(f"submodule {name} cannot be fetched from {error}") from error
        except (RemoteRefuses, ObjectUnusable) as error:
            raise ObjectUnusable(f"submodule {name} ({url}): {error}") from error
        except RemoteUnavailable as error:
            raise RemoteUnavailable(f"submodule {name} ({url}): {error}") from error
        tree.modules.append(Module(path=name, url=url, commit=commit))
        return _Part(mirror, commit, url, path + b"/", part.depth + 1)


def shown(path: bytes) -> str:
    """Return a path for display and for JSON; escape bytes that are not text and line breaks."""
    return printable(decode(path))


def _list(objects: Objects, commit: str, *, with_rules: bool) -> tuple[dict[bytes, tuple[int, str]], bytes]:
    """Return the mode and the id of each path of a commit, in git's order, and the text of `.vhignore`."""
    budget = Budget(size=_MAX_LISTING_BYTES, beside=_BYTES_BESIDE_A_PATH, seconds=_LISTING_SECONDS)
    try:
        changes = compare(objects, None, f"{commit}^{{tree}}", budget)
    except OutputTooLarge as error:
        raise ObjectUnusable(
            f"the commit {commit} has too many files for a package: the list of their names exceeds"
            f" {_MAX_LISTING_BYTES} bytes"
        ) from error
    listing = {}
    for path, _, mode, object_id in changes:
        parts = b"/%b/" % path.lower()
        if b"//" in parts or b"/./" in parts or b"/../" in parts or b"/.git/" in parts:
            raise ObjectUnusable(f"the tree has a path that is not allowed in a folder: {shown(path)}")
        listing[path] = (mode, object_id)
    _refuse_files_that_are_folders(listing)
    return listing, _rules(objects, *listing.get(b".vhignore", (0, ""))) if with_rules else b""


def _rules(objects: Objects, mode: int, blob: str) -> bytes:
    if mode & KIND != REGULAR:
        return b""
    try:
        return objects.content(blob, limit=MAX_RULES_BYTES)
    except OutputTooLarge as error:
        raise ObjectUnusable(
            f".vhignore is larger than {MAX_RULES_BYTES} bytes: write fewer rules"
        ) from error


def _refuse_files_that_are_folders(listing: Collection[bytes]) -> None:
    """Raise `ObjectUnusable` if a path is also a folder of another path, which git permits in a tree."""
    folders: set[bytes] = set()
    for path in listing:
        folder = path.rpartition(b"/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition(b"/")[0]
    for path in folders & set(listing):
        raise ObjectUnusable(f"the tree has both a file and a folder named {shown(path)}")


def _take(
    tree: Tree, part: _Part, listing: dict[bytes, tuple[int, str]], rules: Rules, kept: bytes | None
) -> list[tuple[bytes, str]]:
    """Add the files and links that are not ignored, and the file `kept`, to the tree.

    Return the paths and commits of submodules.
    """
    source = len(tree.sources)
    tree.sources.append(part.mirror)
    submodules = []
    for path, (mode, object_id) in listing.items():
        whole = part.prefix + path
        if mode & KIND == GITLINK:
            if not rules.ignores(whole, is_folder=True):
                submodules.append((path, object_id))
        elif whole == kept or not rules.ignores(whole):
            tree.entries.append(Entry(whole, mode, object_id, source))
    return submodules
