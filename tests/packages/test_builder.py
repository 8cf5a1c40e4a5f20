"""Packages: the same bytes everywhere, which every tar unpacks to the files of a git checkout."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from gateway.errors import ObjectUnusable
from gateway.fetch.process import GitFailed
from gateway.packages.builder import FORMATS, Format, Packer, Stopped
from gateway.packages.tree import Entry, Tree
from testing.archives import extract
from testing.fetching import Fetching, make_fetching
from testing.git_host import ENVIRONMENT, WorkTree
from testing.packing import Packing, names, untarred

LONG = "/".join(["a folder with a rather long name, which is longer than tar likes"] * 6) + "/file"
FILES = {
    "train.py": "print(1)\n",
    "empty": "",
    "dir.txt": "before dir/",
    "dir/a": "a" * 511,
    "dir/b": "b" * 512,
    "dir/c": "c" * 513,
    "ünïcode/数据.csv": "1,2\n",
    "line\nfeed\ttab": "x",
    " blank ": "x",
    "-option": "x",
    "n" * 100: "exactly as long as a header takes",
    "m" * 101: "longer",
    LONG: "far longer",
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n"

# Packs a repository in another process: `python -c ... HOME REPOSITORY COMMIT FILE FORMAT`.
PACK = """
import asyncio, json, os, re, sys, threading
from pathlib import Path
from gateway.fetch.git import Git
from gateway.packages.builder import Packer
from gateway.packages.tree import TreeReader
home, repository, commit, file, package_format = sys.argv[1:]
os.umask(int(os.environ.get("UMASK", "022"), 8))
git = Git(home=Path(home), allow_http=False, timeout=60)
reader = TreeReader(git, allow_http=False, hosts=())
tree = asyncio.run(reader.read(Path(repository), commit=commit, url="", fetch=None))
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
packer = Packer(git=git, warn_above=10**9, most=10**9, most_unpacked=10**9)
packed = packer.pack(tree, Path(file), package_format=package_format, stop=threading.Event())
print(json.dumps({"id": packed.id, "sha256": packed.sha256, "grown_kilobytes": peak() - before}))
"""


@pytest.fixture
def packing(fetching: Fetching, tmp_path: Path) -> Packing:
    """Return a packer of commits."""
    return Packing(fetching, tmp_path)


def everything(tree: WorkTree) -> str:
    """Commit files with names, modes and links of every kind; return the commit."""
    (tree.folder / "link").symlink_to("dir/a")
    (tree.folder / "dir").mkdir()
    (tree.folder / "dir" / "up").symlink_to("../train.py")
    (tree.folder / "dangling").symlink_to("x" * 150)
    (tree.folder / "run.sh").write_text("#!/bin/sh\n")
    (tree.folder / "run.sh").chmod(0o755)
    commit = tree.commit("Everything", FILES)
    tree.push()
    return commit


def pack_elsewhere(
    tmp_path: Path, repository: Path, commit: str, package_format: str = "tar.gz", **variables: str
) -> dict[str, str | int]:
    """Pack in another process, under other circumstances."""
    file = tmp_path / f"elsewhere-{len(list(tmp_path.iterdir()))}"
    done = subprocess.run(
        [sys.executable, "-c", PACK, tmp_path / "other-home", repository, commit, file, package_format],
        env={**os.environ, **variables},
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    report: dict[str, str | int] = json.loads(done.stdout)
    return report


def content_of(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return what is in a folder: each file's kind and content; a link's content is its target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", os.readlink(path).encode())  # noqa: PTH115 - as it is written
        elif path.is_file():
            found[name] = ("x" if path.stat().st_mode & 0o100 else "-", path.read_bytes())
    return found


@pytest.mark.parametrize("package_format", FORMATS)
def test_the_same_commit_gives_the_same_bytes(
    packing: Packing, tree: WorkTree, url: str, tmp_path: Path, package_format: Format
) -> None:
    """From another mirror with other packs, in a process with another time zone, language and umask."""
    commit = everything(tree)
    found = packing.tree(url, commit)
    packed, content = packing.pack(found, package_format)
    other = make_fetching(tmp_path / "other")
    other.update(url, ("refs/heads/main", commit))
    mirror = other.mirrors.path("c1")
    subprocess.run(["git", "repack", "-adfq", "--depth=1"], cwd=mirror, env=ENVIRONMENT, check=True)
    elsewhere = pack_elsewhere(
        tmp_path, mirror, commit, package_format, TZ="Asia/Kathmandu", LC_ALL="C", UMASK="077", PYTHONUTF8="0"
    )
    assert (elsewhere["id"], elsewhere["sha256"]) == (packed.id, packed.sha256)
    assert hashlib.sha256(content).hexdigest() == packed.sha256
    tar = untarred(content, package_format)
    assert (hashlib.sha256(tar).hexdigest(), len(tar)) == (packed.id, packed.tar_size)
    assert len(content) == packed.size


def test_the_tar_never_changes(packing: Packing, tree: WorkTree, url: str) -> None:
    """These bytes are promised: another digest means other packing rules, which need a new name."""
    commit = everything(tree)
    packed, _ = packing.pack(packing.tree(url, commit))
    assert packed.id == "aeffd0796620cdfd617f8fd08cc6e8fbfc22b46d1c6d157af88830e1a60b40c2"


def test_every_format_holds_the_same_tar(packing: Packing, tree: WorkTree, url: str) -> None:
    """So the id is the same."""
    found = packing.tree(url, everything(tree))
    assert len({packing.pack(found, one)[0].id for one in FORMATS}) == 1


def test_it_unpacks_to_what_git_checks_out(
    packing: Packing, tree: WorkTree, url: str, tmp_path: Path
) -> None:
    """By tar and by Python, and equal to `git archive`, except for ignored files."""
    everything(tree)
    ignoring = tree.commit("Ignoring", {".vhignore": "*.txt\n/dir/*\n!/dir/a\n", "sub/.vhignore": "*\n"})
    tree.push()
    found = packing.tree(url, ignoring)
    _, content = packing.pack(found)
    (tmp_path / "package.tar.gz").write_bytes(content)
    for name in ("tar", "python", "archive"):
        (tmp_path / name).mkdir()
    subprocess.run(
        ["tar", "-xzf", tmp_path / "package.tar.gz", "-C", tmp_path / "tar"], check=True, capture_output=True
    )
    with tarfile.open(tmp_path / "package.tar.gz") as archive:
        extract(archive, tmp_path / "python")
    archived = subprocess.run(
        ["git", "archive", ignoring], cwd=tree.folder, env=ENVIRONMENT, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", tmp_path / "archive"], input=archived, check=True)
    expected = content_of(tmp_path / "archive")
    for name in ("dir.txt", "dir/b", "dir/c", "dir/up"):
        del expected[name]
    assert content_of(tmp_path / "tar") == expected
    assert content_of(tmp_path / "python") == expected
    assert packing.pack(found)[0].files == len(expected)


def test_members_say_nothing_of_whom_and_when(
    packing: Packing, tree: WorkTree, url: str, tmp_path: Path
) -> None:
    """Sorted by their bytes, with a neutral owner, all with the same time."""
    found = packing.tree(url, everything(tree))
    _, content = packing.pack(found)
    (tmp_path / "package.tar.gz").write_bytes(content)
    with tarfile.open(tmp_path / "package.tar.gz") as archive:
        members = archive.getmembers()
    assert [one.name.encode() for one in members] == sorted(one.name.encode() for one in members)
    assert {(one.uid, one.gid, one.uname, one.gname, one.mtime) for one in members} == {
        (0, 0, "", "", 315619200)
    }
    assert {one.mode for one in members} == {0o644, 0o755, 0o777}


def test_equal_trees_are_equal_packages(packing: Packing, tree: WorkTree, url: str) -> None:
    """Whichever commits they come from."""
    first = tree.commit("First", {"a": "1"})
    second = tree.commit("Nothing has changed", {})
    tree.push()
    ids = {packing.pack(packing.tree(url, commit))[0].id for commit in (first, second)}
    assert len(ids) == 1


def test_an_empty_tree_is_a_package(packing: Packing, tree: WorkTree, url: str) -> None:
    """Two empty blocks, which make an empty tar."""
    commit = tree.commit("Nothing", {})
    tree.push()
    packed, content = packing.pack(packing.tree(url, commit))
    assert untarred(content, "tar.gz") == bytes(1024)
    assert packed.files == 0


def test_repositories_with_sha256_ids_are_packed(packing: Packing, tmp_path: Path) -> None:
    """To the same bytes as any other."""
    one = WorkTree(tmp_path / "one", "none")
    two = WorkTree(tmp_path / "two", "none", object_format="sha256")
    ids = {
        packing.pack(packing.tree_in(work.folder / ".git", work.commit("First", FILES)))[0].id
        for work in (one, two)
    }
    assert len(ids) == 1


def test_lfs_pointers_are_named(packing: Packing, tree: WorkTree, url: str) -> None:
    """Otherwise runners would train on them."""
    commit = tree.commit(
        "First", {"model.bin": POINTER, "like.txt": "x" + POINTER, "long": POINTER + "y" * 2000}
    )
    tree.push()
    packed, _ = packing.pack(packing.tree(url, commit))
    assert packed.warnings == ("the package has Git LFS pointers in place of these files: model.bin",)


def test_many_lfs_pointers_are_counted(packing: Packing, tree: WorkTree, url: str) -> None:
    """The first ten by name."""
    commit = tree.commit("First", {f"m{number:02}": POINTER for number in range(12)})
    tree.push()
    packed, _ = packing.pack(packing.tree(url, commit))
    assert packed.warnings[0].endswith("m08, m09, and 2 more")


def test_large_packages_are_remarked_on_and_larger_ones_refused(
    fetching: Fetching, tree: WorkTree, url: str, tmp_path: Path
) -> None:
    """As soon as the size is known: more than the limit is never written."""
    (tree.folder / "noise").write_bytes(os.urandom(2_000_000))
    commit = tree.commit("First", {})
    tree.push()
    warned = Packing(fetching, tmp_path, warn_above=1_000_000)
    packed, _ = warned.pack(warned.tree(url, commit))
    assert "more than 1000000: runners will be slow" in packed.warnings[0]
    refused = Packing(fetching, tmp_path, most=1_000_000)
    with pytest.raises(ObjectUnusable, match="more than 1000000 bytes, which is the limit"):
        refused.pack(refused.tree(url, commit))


def test_what_is_small_only_while_it_is_packed_is_refused(
    fetching: Fetching, tree: WorkTree, url: str, tmp_path: Path
) -> None:
    """Otherwise a few kilobytes of zeros would fill the disk of a runner."""
    (tree.folder / "zeros").write_bytes(bytes(5_000_000))
    commit = tree.commit("First", {})
    tree.push()
    refused = Packing(fetching, tmp_path, most=1_000_000, most_unpacked=4_000_000)
    with pytest.raises(ObjectUnusable, match="unpacked, the package would have more than 4000000 bytes"):
        refused.pack(refused.tree(url, commit))
    taken = Packing(fetching, tmp_path, most=1_000_000, most_unpacked=6_000_000)
    packed, _ = taken.pack(taken.tree(url, commit))
    assert packed.size < 100_000
    assert packed.tar_size > 5_000_000


def test_a_link_that_leaves_the_tree_is_refused_unless_it_is_ignored(
    packing: Packing, tree: WorkTree, url: str
) -> None:
    """The reason names it."""
    (tree.folder / "data").symlink_to("/mnt/data")
    commit = tree.commit("First", {"a": "1"})
    tree.push()
    with pytest.raises(ObjectUnusable, match="the link data leads out of the tree, to /mnt/data"):
        packing.pack(packing.tree(url, commit))
    ignoring = tree.commit("Second", {".vhignore": "data\n"})
    tree.push()
    assert names(packing.tree(url, ignoring)) == [".vhignore", "a"]


def test_a_large_file_is_never_whole_in_memory(tree: WorkTree, tmp_path: Path) -> None:
    """300 MB that compress, through a process that hardly grows."""
    with (tree.folder / "large").open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(1000) * 1000)
    commit = tree.commit("First", {})
    elsewhere = pack_elsewhere(tmp_path, tree.folder / ".git", commit)
    assert int(elsewhere["grown_kilobytes"]) < 40_000


def test_a_missing_object_is_an_error(fetching: Fetching, tree: WorkTree, url: str, tmp_path: Path) -> None:
    """The mirror is broken and has to be cloned again."""
    commit = tree.commit("First", {"a": "1"})
    tree.push()
    packing = Packing(fetching, tmp_path)
    found = packing.tree(url, commit)
    found.entries.append(Entry(b"z", 0o100644, "d" * 40, 0))
    with pytest.raises(GitFailed, match="unable to read " + "d" * 40):
        packing.pack(found)


def test_packing_can_be_called_off(fetching: Fetching, tree: WorkTree, url: str, tmp_path: Path) -> None:
    """As at SIGTERM."""
    commit = tree.commit("First", {"a": "1"})
    tree.push()
    found: Tree = Packing(fetching, tmp_path).tree(url, commit)
    stop = threading.Event()
    stop.set()
    packer = Packer(git=fetching.git, warn_above=1, most=10**6, most_unpacked=10**6)
    with pytest.raises(Stopped):
        packer.pack(found, tmp_path / "off", package_format="tar.gz", stop=stop)
