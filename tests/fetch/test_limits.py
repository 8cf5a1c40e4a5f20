"""The limits on git's use of this machine, and the reasons when git exceeds them."""

import secrets
import subprocess
import sys
import traceback
from collections import deque
from pathlib import Path

import pytest

from gateway.errors import LocalFailure, ObjectUnusable, SettingError
from gateway.fetch.commit import Paths
from gateway.fetch.git import require_git
from gateway.fetch.limits import GitLimits, machine_failure
from gateway.fetch.process import GitFailed, LimitReached, OutputTooLarge
from gateway.settings import git_memory
from testing.fetching import Fetching, make_fetching, mktree
from testing.git_host import GitHost, WorkTree
from testing.service import Project, Service

MAIN, BOMB = "refs/heads/main", "refs/heads/bomb"
YAML = {"valohai.yaml": "- step: {}\n"}
MIB = 1024 * 1024


def bomb(tree: WorkTree, *, deep: int = 14, wide: int = 10) -> str:
    """Push a branch of nested folders, with this depth and width: a few KB that name 10 ** 14 files."""
    blob = tree.git("rev-parse", "HEAD:valohai.yaml")
    inner = f"100644 blob {blob}"
    for _ in range(deep):
        inner = "040000 tree " + mktree(tree, *(f"{inner}\tf{number:04}" for number in range(wide)))
    root = mktree(tree, f"100644 blob {blob}\tvalohai.yaml", f"{inner}\tbomb")
    commit = tree.git("commit-tree", "-p", "HEAD", "-m", "Bomb", root)
    tree.push(f"{commit}:{BOMB}")
    return commit


def test_what_a_bomb_has_changed_is_too_much_to_list(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """The commit is read nevertheless, and the mirror stays."""
    first = tree.commit("First", YAML)
    tree.push()
    commit = bomb(tree)
    fetching.update(url, (BOMB, commit))
    read = fetching.read(commit, before=first)
    assert (read.paths, read.manifest) == (Paths((), complete=False), b"- step: {}\n")
    assert fetching.has(commit)


@pytest.mark.parametrize("paths", [[], ["train.py"]])
def test_a_bomb_on_a_branch_is_a_push_like_any_other(
    service: Service, project: Project, paths: list[str]
) -> None:
    """With path triggers, any path counts as changed; without them, paths are not read."""
    trigger = {"name": "train", "branches": ["bomb"], "run": {"step": "train"}, "paths": paths}
    connection = service.connect(project.url, triggers=[trigger])
    commit = bomb(project.tree)
    _, answer = service.deliver(connection, project.payload(project.first, commit, ref=BOMB))
    [update] = service.settled(answer["delivery"])["updates"]
    assert update["state"] == "failed"
    assert "too many files for a package" in update["reason"]
    [verdict] = update["verdicts"]
    assert ("too many paths" in verdict["reason"]) == bool(paths)


def test_a_limit_that_a_fetch_reaches_is_named(tmp_path: Path, githost: GitHost) -> None:
    """With its setting; the mirror is kept, and smaller fetches still work."""
    fetching, tree = make_fetching(tmp_path, file_size=MIB), WorkTree(tmp_path / "w", githost.create("a.git"))
    first = tree.commit("First", YAML)
    tree.push()
    fetching.update(githost.url("a.git"), (MAIN, first))
    large = tree.commit("Large", {"large": secrets.token_hex(2 * MIB)})
    tree.push()
    with pytest.raises(ObjectUnusable, match=r"more than 1048576 bytes \(PUSHGATE_GIT_MAX_FILE_BYTES\)"):
        fetching.update(githost.url("a.git"), (MAIN, large))
    assert fetching.has(first)


def test_a_limit_that_reading_reaches_is_named(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """Memory and CPU time, each with its setting; the depth of the stack is a limit as well."""
    tree.commit("First", YAML)
    tree.push()
    commit = bomb(tree)
    fetching.update(url, (BOMB, commit))
    walk = ("diff-tree", "-r", "--name-only", "--root", commit)

    def failure(limits: GitLimits) -> str:
        with pytest.raises(LimitReached) as caught:
            fetching.run(fetching.git.run(*walk, mirror=fetching.mirrors.path("c1"), limits=limits))
        return str(caught.value)

    assert failure(GitLimits(memory=64 * MIB)) == (
        f"git needed more than {64 * MIB} bytes of memory (PUSHGATE_GIT_MAX_MEMORY_BYTES)"
    )
    assert (
        failure(GitLimits(cpu=1)) == "git used more than 1 seconds of CPU time (PUSHGATE_GIT_MAX_CPU_SECONDS)"
    )


def test_a_limit_that_packing_reaches_is_named(tmp_path: Path, tree: WorkTree) -> None:
    """Also in a git process that reads one object after another."""
    text = secrets.token_hex(4 * MIB)
    tree.commit("Large, and much the same again", {"a": text, "b": f"{text}x"})
    tree.git("-c", "pack.compression=0", "repack", "-adfq")
    blobs = [tree.git("rev-parse", f"HEAD:{name}") for name in "ab"]

    def read() -> None:
        with make_fetching(tmp_path, memory=16 * MIB).git.open(tree.folder / ".git") as objects:
            for _, content in objects.read(blobs):
                deque(content, maxlen=0)

    with pytest.raises(LimitReached, match="bytes of memory"):
        read()


def test_a_git_that_is_missing_is_a_failure_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason does not mention the remote, which was not contacted."""
    monkeypatch.setenv("PATH", str(tmp_path))
    without = make_fetching(tmp_path)
    with pytest.raises(
        LocalFailure, match=r"this machine cannot fetch from any remote: git cannot be started .*not found"
    ):
        without.update("http://127.0.0.1:9/a.git", (MAIN, "d" * 40))
    with pytest.raises(LocalFailure), without.git.open(tmp_path) as objects:
        list(objects.read(["d" * 40]))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("git version 2.34.1", "git 2.36 or newer is needed; .*/git says: git version 2.34.1"),
        (None, "not installed"),
    ],
)
def test_a_git_that_is_too_old_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, expected: str
) -> None:
    """As one that is not there does: each push would fail."""
    require_git()
    if said is not None:
        (tmp_path / "git").write_text(f"#!/bin/sh\necho {said}\n")
        (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingError, match=expected):
        require_git()


_NO_FILES_LEFT = """
import asyncio, concurrent.futures.thread, os, resource, sys, tempfile
from pathlib import Path
from gateway.errors import LocalFailure
from gateway.settings import git_memory
from testing.fetching import make_fetching
fetching = make_fetching(Path(sys.argv[1]))
tempfile.gettempdir()
async def scenario():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    left = []
    try:
        while True:
            left.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        await fetching.git.run("--version")
    except LocalFailure as error:
        return str(error)
    finally:
        for descriptor in left:
            os.close(descriptor)
print(asyncio.run(scenario()))
"""


def test_no_files_left_is_a_failure_of_this_machine(tmp_path: Path) -> None:
    """A gateway at its limit of open files does not blame the remote."""
    command = [sys.executable, "-c", _NO_FILES_LEFT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.endswith(": git cannot be started (Too many open files)\n")


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(1800 * MIB, 1200 * MIB), (256 * MIB, 1024 * MIB), (2**63 - 4096, None), ("max", None)],
)
def test_a_small_container_gives_git_less_memory(
    tmp_path: Path, limit: int | str, expected: int | None
) -> None:
    """So that git fails before the kernel kills the container; at least what an index needs."""
    path = tmp_path / "memory.max"
    path.write_text(f"{limit}\n")
    assert git_memory([tmp_path / "none", path]) == (expected or git_memory([]))


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (128, "fatal: write error: No space left on device\n", "no space left on device"),
        (128, "error: cannot fork() for rev-list: Cannot allocate memory\n", "cannot fork"),
        (
            128,
            "error: index-pack died of signal 9\nfatal: fetch-pack: invalid index-pack output",
            "git was k",
        ),
        (-9, "", "git was killed"),
        (127, "sh: 1: exec: git: not found\n", "git cannot be started"),
        (128, "remote: fatal: write error: No space left on device\nfatal: early EOF\n", None),
        (128, "fatal: remote error: out of memory\n", None),
        (128, "fatal: not our ref\n", None),
    ],
)
def test_failures_of_this_machine_are_distinguished_from_those_of_others(
    status: int, said: str, expected: str | None
) -> None:
    """Messages of the remote about its own disk and memory are not about this machine."""
    failure = machine_failure(status, said)
    assert failure is None if expected is None else (failure or "").startswith(expected)
    assert GitLimits().exceeded(status, said) is None


def test_another_failure_of_git_is_reported_as_before(fetching: Fetching, tmp_path: Path) -> None:
    """In git's own words."""
    with pytest.raises(GitFailed, match="not a git repository"):
        fetching.run(fetching.git.run("rev-parse", "HEAD", mirror=tmp_path))


def test_an_error_holds_nothing_of_what_git_said(fetching: Fetching, tree: WorkTree) -> None:
    """It may live until garbage collection, and each error would hold 32 MB until then."""
    commit = tree.commit("Large", {"large": "x" * 4 * MIB})
    said = fetching.git.run(
        "cat-file", "blob", f"{commit}:large", mirror=tree.folder / ".git", output_limit=2 * MIB
    )
    with pytest.raises(OutputTooLarge) as caught:
        fetching.run(said)
    held = [
        sys.getsizeof(one)
        for frame, _ in traceback.walk_tb(caught.tb)
        for one in frame.f_locals.values()
        if isinstance(one, bytes | bytearray)
    ]
    assert held
    assert max(held) < MIB
