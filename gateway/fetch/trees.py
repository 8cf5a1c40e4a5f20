"""Lists trees and compares them: the results of `git ls-tree -r` and `git diff-tree -r --raw --no-renames`.

Malformed trees (unsorted, with duplicate entries or unusual modes) are read as git reads them. Only folders
that differ are read. An attacker who can push chooses the trees, and a few kilobytes can name more paths than
any memory holds: a `Budget` limits the paths, the folders and the time.
"""

import re
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gateway.fetch.objects import Objects
from gateway.fetch.process import GitFailed, GitTimedOut, OutputTooLarge

LINK, GITLINK = 0o120000, 0o160000
KIND, REGULAR = 0o170000, 0o100000
EXECUTABLE = 0o100
_FOLDER = 0o040000
# About 800,000 files in one folder.
_MAX_TREE_BYTES = 32 * 1024 * 1024
# An entry is its mode in octal digits, a space, its name, NUL and its id in binary.
_ENTRIES = {size: re.compile(rb"[0-7]+ [^\0]+\0.{%d}" % size, re.DOTALL) for size in (20, 32)}


class Entry(NamedTuple):
    """An entry of a tree; git shows unknown modes as those of submodules."""

    mode: int
    name: bytes
    id: str


class Change(NamedTuple):
    """A path that differs between two trees. A mode is 0, and an id empty, where the path does not exist."""

    path: bytes
    old_mode: int
    mode: int
    id: str


class Budget:
    """How much may be listed: `size` bytes of paths, with `beside` more for each, and as much of folders."""

    def __init__(self, *, size: int, beside: int, seconds: float) -> None:
        """Begin with nothing used."""
        self._size, self._beside, self._seconds = size, beside, seconds
        self._paths = self._folders = size
        self._until = time.monotonic() + seconds

    def add_path(self, path: bytes) -> None:
        """Count a path. Raises `OutputTooLarge`."""
        self._paths -= len(path) + self._beside
        if self._paths < 0:
            raise OutputTooLarge(f"the list of paths exceeds {self._size} bytes")

    def add_folder(self, path: bytes) -> None:
        """Count a folder. Raises `OutputTooLarge`."""
        self._folders -= len(path) + self._beside
        if self._folders < 0:
            raise OutputTooLarge(f"the list of folders exceeds {self._size} bytes")

    def check_time(self) -> None:
        """Raise `GitTimedOut` if the time is over."""
        if time.monotonic() > self._until:
            raise GitTimedOut(f"reading trees took longer than {self._seconds:g} seconds")


class _Pair(NamedTuple):
    """Two trees to compare, one of which may be absent, the path of their folder, and where changes go."""

    old: str | None
    new: str | None
    path: bytes
    changes: "list[Change | _Pair]"


def compare(objects: Objects, old: str | None, new: str, budget: Budget) -> list[Change]:
    """Return the paths of files, links and submodules that differ, in git's order; None is an empty tree.

    Raises `GitFailed` if a tree is missing or unreadable.
    """
    top = _Pair(old, new, b"", [])
    level = [top]
    # One level of folders after another, so that git never waits for the next query.
    while level:
        names = [name for pair in level for name in (pair.old, pair.new) if name is not None]
        trees = _read(objects, names)
        deeper: list[_Pair] = []
        for pair in level:
            budget.check_time()
            before = [] if pair.old is None else next(trees)
            after = [] if pair.new is None else next(trees)
            _merge(before, after, pair, budget)
            deeper += [change for change in pair.changes if isinstance(change, _Pair)]
        # Reading past the last tree ends the answers.
        next(trees, None)
        level = deeper
    return list(_flat(top))


def find(objects: Objects, tree: str, path: bytes) -> Entry | None:
    """Return the entry at a path, or None. Raises `OutputTooLarge` for a folder that is too large to read."""
    *folders, last = path.split(b"/")
    for folder in folders:
        found = next((entry for entry in _named(objects, tree, folder) if entry.mode == _FOLDER), None)
        if found is None:
            return None
        tree = found.id
    return next(_named(objects, tree, last), None)


def _named(objects: Objects, tree: str, name: bytes) -> Iterator[Entry]:
    [entries] = _read(objects, [tree])
    size = _id_size(tree)
    part = b" %b\0" % name
    return (entry for raw in entries if part in raw and (entry := _entry(raw, size)).name == name)


def _id_size(name: str) -> int:
    return len(name.partition("^")[0]) // 2


def _read(objects: Objects, names: Sequence[str]) -> Iterator[list[bytes]]:
    """Yield the raw entries of each tree."""
    for name, (size, parts) in zip(names, objects.read(names, kind="tree"), strict=True):
        if size > _MAX_TREE_BYTES:
            raise OutputTooLarge(f"the tree {name} has {size} bytes")
        content = b"".join(parts)
        entries = _ENTRIES[_id_size(name)].findall(content)
        if sum(map(len, entries)) != size:
            raise GitFailed(f"bad tree {name}: it has a malformed entry")
        yield entries


def _entry(raw: bytes, size: int) -> Entry:
    mode, _, rest = raw.partition(b" ")
    return Entry(_canonical(int(mode, 8)), rest[: -size - 1], rest[-size:].hex())


def _canonical(mode: int) -> int:
    kind = mode & KIND
    if kind == REGULAR:
        return REGULAR | (0o755 if mode & EXECUTABLE else 0o644)
    return kind if kind in {LINK, _FOLDER} else GITLINK


def _merge(old: Sequence[bytes], new: Sequence[bytes], pair: _Pair, budget: Budget) -> None:
    """Compare the entries of two trees as git does, which expects both to be sorted."""
    size = _id_size(pair.new or pair.old or "")
    at, to = 0, 0
    while at < len(old) or to < len(new):
        if at < len(old) and to < len(new) and old[at] == new[to]:
            at, to = at + 1, to + 1
            continue
        before = _entry(old[at], size) if at < len(old) else None
        after = _entry(new[to], size) if to < len(new) else None
        if before is not None and after is not None and _order(before) != _order(after):
            before, after = (before, None) if _order(before) < _order(after) else (None, after)
        at += before is not None
        to += after is not None
        if before is None or after is None or before != after:
            pair.changes.append(_change(before, after, pair.path, budget))


def _order(entry: Entry) -> bytes:
    """Return what git sorts by: the name, that of a folder with a slash at its end."""
    return entry.name + (b"/" if entry.mode == _FOLDER else b"\0")


def _change(before: Entry | None, after: Entry | None, folder: bytes, budget: Budget) -> "Change | _Pair":
    entry = after or before
    assert entry is not None  # noqa: S101 - one of them exists
    path = folder + entry.name
    old, new = (None if one is None else one.id for one in (before, after))
    if entry.mode == _FOLDER:
        budget.add_folder(path)
        return _Pair(old, new, path + b"/", [])
    budget.add_path(path)
    return Change(path, before.mode if before else 0, after.mode if after else 0, new or "")


def _flat(top: _Pair) -> Iterator[Change]:
    waiting = [iter(top.changes)]
    while waiting:
        for change in waiting[-1]:
            if isinstance(change, _Pair):
                waiting.append(iter(change.changes))
                break
            yield change
        else:
            waiting.pop()
