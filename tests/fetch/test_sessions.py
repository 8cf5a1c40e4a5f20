"""The git that reads a mirror is started once for a turn, and finds what changes meanwhile."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from gateway.fetch.objects import Objects
from gateway.fetch.process import GitTimedOut
from testing.fetching import Fetching, make_fetching
from testing.git_host import WorkTree, git
from testing.service import wait_for

MAIN = "refs/heads/main"


def readers() -> set[int]:
    """Return the processes that read mirrors for this one."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"--batch-command" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def test_one_git_reads_for_a_whole_turn(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """It finds loose objects, packs and repacked objects; a mirror that replaces another gets its own."""
    commits: list[str] = []

    def push_and_read(size: int) -> set[int]:
        number = len(commits)
        commits.append(
            tree.commit(f"{number}", {f"{number}/{name}": f"{number} {name}" for name in range(size)})
        )
        tree.push()
        fetching.update(url, (MAIN, commits[-1]))
        paths = fetching.read(commits[-1], before=commits[-2] if number else None).paths
        assert paths is not None
        assert len(paths.names) == size
        return readers()

    async def turn() -> None:
        async with fetching.mirrors.keeping("c1"):
            # A fetch of more than a hundred objects is stored as a pack.
            first = [await asyncio.to_thread(push_and_read, size) for size in (1, 120, 2)]
            git("repack", "-adq", folder=fetching.mirrors.path("c1"))
            first += [await asyncio.to_thread(push_and_read, 3)]
            assert len(first[0]) == 1
            assert all(found == first[0] for found in first)
            await fetching.mirrors.discard("c1")
            assert len(await asyncio.to_thread(push_and_read, 4) - first[0]) == 1

    fetching.run(turn())
    assert readers() == set()


def test_a_reader_does_not_wait_for_another(fetching: Fetching, tree: WorkTree, url: str) -> None:
    """A second git reads while the first is busy. One of them is kept, and replaced when it has died."""
    commit, mirror = tree.commit("First", {"a": "b"}), fetching.mirrors.path("c1")
    tree.push()
    fetching.update(url, (MAIN, commit))
    owner = mirror.with_name("c1")
    fetching.git.sessions.keep(owner)
    with fetching.git.open(mirror) as first, fetching.git.open(mirror) as second:
        assert first.headers([commit]) == second.headers([commit]) != [None]
        assert len(readers()) == 2
    [kept] = readers()
    os.kill(kept, signal.SIGKILL)
    wait_for(lambda: not readers(), "it has died")
    with fetching.git.open(mirror) as objects:
        assert objects.headers([commit]) != [None]
    fetching.git.sessions.end(owner)
    assert readers() == set()


def test_a_reading_that_is_cancelled_or_too_slow_leaves_no_process(tmp_path: Path, tree: WorkTree) -> None:
    """Not even of a git that does not answer."""
    tree.commit("First", {"a": "b"})
    # Long enough for a git to start on a busy machine.
    fetching = make_fetching(tmp_path, timeout=3)

    def read_on(objects: Objects) -> object:
        # It is a process before it is git.
        [reader] = wait_for(readers, "git runs")
        os.kill(reader, signal.SIGSTOP)
        return objects.headers(["d" * 40])

    with pytest.raises(GitTimedOut):
        fetching.run(fetching.git.read(tree.folder / ".git", read_on))
    assert readers() == set()

    async def cancel() -> None:
        patient = make_fetching(tmp_path, timeout=300)
        reading = asyncio.create_task(patient.git.read(tree.folder / ".git", read_on))
        await asyncio.to_thread(wait_for, readers, "git reads")
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert readers() == set()

    fetching.run(cancel())
