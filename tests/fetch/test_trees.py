"""Trees beside `git ls-tree` and `git diff-tree`, and limits on trees that an attacker chose."""

import subprocess
import zlib
from collections.abc import Sequence
from hashlib import sha1
from pathlib import Path
from random import Random

import pytest

from gateway.fetch.process import GitFailed, OutputTooLarge
from gateway.fetch.trees import Budget, Change, compare, find
from testing.fetching import Fetching
from testing.git_host import ENVIRONMENT, git

_NAMES = (b"a", b"a.b", b"a-b", b"ab", b"b", b"B", b"12 x", b"\xff", b"c\nd")
_MODES = (
    b"100644",
    b"100755",
    b"120000",
    b"160000",
    b"40000",
    b"040000",
    b"100664",
    b"100700",
    b"0",
    b"20000",
)


class _Store:
    """Writes loose objects, valid or not, without starting git."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.mirror = folder / "trees.git"
        git("init", "--quiet", "--bare", str(self.mirror), folder=folder)
        self._random = Random(seed)  # noqa: S311 - the same trees in each run
        self._blobs = [self.write(b"blob", b"%d" % number) for number in range(3)]

    def write(self, kind: bytes, content: bytes) -> str:
        """Write an object and return its id."""
        raw = b"%b %d\0%b" % (kind, len(content), content)
        name = sha1(raw, usedforsecurity=False).hexdigest()
        path = self.mirror / "objects" / name[:2] / name[2:]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(zlib.compress(raw))
        return name

    def tree(self, depth: int, *, is_sound: bool) -> str:
        """Write a random tree, which has every kind of flaw that a fetch tolerates if it is not sound."""
        random = self._random
        names = random.sample(_NAMES, 5) if is_sound else random.choices(_NAMES, k=6)
        entries = [(random.choice(_MODES[:5] if is_sound else _MODES), name) for name in names]
        if is_sound:
            entries.sort(key=lambda entry: entry[1] + (b"/" if entry[0] == b"40000" else b""))
        return self.write(b"tree", b"".join(self._entry(*entry, depth, is_sound) for entry in entries))

    def _entry(self, mode: bytes, name: bytes, depth: int, is_sound: bool) -> bytes:
        child = self._random.choice(self._blobs)
        if mode.endswith(b"40000"):
            child = self.tree(depth - 1, is_sound=is_sound) if depth else self.write(b"tree", b"")
        return b"%b %b\0%b" % (mode, name, bytes.fromhex(child))

    def mutated(self, tree: str) -> str:
        """Write a tree that shares most of its entries with another."""
        content = self.git("cat-file", "tree", tree)
        cut = content.find(b"\0") + 21
        kept = content[cut:] if self._random.random() < 0.5 else content
        return self.write(b"tree", kept + self._entry(b"100644", b"z", 0, is_sound=True))

    def git(self, *arguments: str) -> bytes:
        """Run git here and return its output."""
        command = ["git", "--literal-pathspecs", *arguments]
        done = subprocess.run(command, cwd=self.mirror, env=ENVIRONMENT, check=True, capture_output=True)
        return done.stdout


def _compared(
    fetching: Fetching, store: _Store, old: str | None, new: str, *, size: int = 10**6
) -> Sequence[Change]:
    budget = Budget(size=size, beside=100, seconds=30)
    return fetching.run(fetching.git.read(store.mirror, compare, old, new, budget))


def _listed_by_git(output: bytes) -> list[Change]:
    facts = output.split(b"\0")
    changes = []
    for fact, path in zip(facts[:-1:2], facts[1::2], strict=True):
        old_mode, mode, _, object_id, _ = fact[1:].decode().split(" ")
        changes.append(Change(path, int(old_mode, 8), int(mode, 8), object_id if mode != "000000" else ""))
    return changes


@pytest.mark.parametrize("is_sound", [True, False])
def test_trees_are_compared_and_listed_as_git_does(
    fetching: Fetching, tmp_path: Path, is_sound: bool
) -> None:
    """Also unsorted ones, with duplicate entries and with modes that no git writes."""
    store = _Store(tmp_path, seed=19)
    for _ in range(12):
        old = store.tree(2, is_sound=is_sound)
        new = store.mutated(old) if is_sound else store.tree(2, is_sound=False)
        expected = store.git("diff-tree", "-r", "-z", "--raw", "--no-renames", "--abbrev=40", old, new)
        assert _compared(fetching, store, old, new) == _listed_by_git(expected)
        listed = [line.partition(b"\t") for line in store.git("ls-tree", "-rz", new).split(b"\0")[:-1]]
        found = _compared(fetching, store, None, new)
        assert [b"%06o %b" % (entry.mode, entry.id.encode()) for entry in found] == [
            b"%b %b" % tuple(facts.split(b" ")[::2]) for facts, _, _ in listed
        ]
        assert [entry.path for entry in found] == [path for _, _, path in listed]


def test_an_entry_is_found_by_its_path(fetching: Fetching, tmp_path: Path) -> None:
    """As `git ls-tree` finds it, also where the path ends in a folder or leads through a file."""
    store = _Store(tmp_path, seed=20)
    for _ in range(6):
        tree = store.tree(1, is_sound=True)
        for path in (b"a", b"b", b"a/b", b"b/a.b", b"a/a/a"):
            entry = fetching.run(fetching.git.read(store.mirror, find, tree, path))
            expected = store.git("ls-tree", "-z", tree, "--", path.decode()).partition(b"\t")[0].split()
            found = [b"%06o" % entry.mode, entry.id.encode()] if entry else []
            assert found == expected[::2]


@pytest.mark.parametrize(
    "content", [b"100644 \0" + bytes(20), b"10x644 a\0" + bytes(20), b"100644 a\0" + bytes(19), b"junk"]
)
def test_a_tree_that_git_cannot_read_is_a_failure(fetching: Fetching, tmp_path: Path, content: bytes) -> None:
    """As it is for git."""
    store = _Store(tmp_path, seed=21)
    tree = store.write(b"tree", content)
    with pytest.raises(subprocess.CalledProcessError):
        store.git("ls-tree", "-r", tree)
    with pytest.raises(GitFailed, match="bad tree"):
        _compared(fetching, store, None, tree)


def test_folders_without_files_are_limited_as_well(fetching: Fetching, tmp_path: Path) -> None:
    """Eight levels of ten folders name a hundred million paths; a hundred levels are long."""
    store = _Store(tmp_path, seed=22)
    wide = deep = store.write(b"tree", b"")
    for _ in range(8):
        entries = (b"40000 %d\0%b" % (number, bytes.fromhex(wide)) for number in range(10))
        wide = store.write(b"tree", b"".join(entries))
    for _ in range(200):
        deep = store.write(b"tree", b"40000 d\0" + bytes.fromhex(deep))
    for tree in (wide, deep):
        with pytest.raises(OutputTooLarge, match="list of folders exceeds 20000 bytes"):
            _compared(fetching, store, None, tree, size=20_000)
    assert _compared(fetching, store, None, deep) == []
