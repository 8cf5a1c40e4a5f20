"""Packing: a tree of 100 MB as tar.gz, beside `git archive | gzip -1` of the same commit in the same run.

A third of the tree is text, a third numbers, a third does not compress, as pictures and weights do not. The
two pack in turn. Ours runs in its own process, whose memory is measured
as well.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

from bench.report import Progress, Rounds, Row
from gateway.fetch.git import Git
from gateway.packages.builder import Packer
from gateway.packages.tree import TreeReader
from testing.git_host import ENVIRONMENT, git
from testing.processes import children_of

_FILES = 2_000
_FILE = 50_000
_MEGABYTES = _FILES * _FILE / 1e6
_ROUNDS = 3
_SECONDS = 45
_MEMORY = 100.0
_WORDS = ("def", "return", "self", "model", "loss", "epoch", "batch", "for", "in", "range", "import", "torch")


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    with tempfile.TemporaryDirectory(prefix="pushgate-bench-") as name:
        folder = Path(name)
        progress("package: a tree of 100 MB")
        commit = _repository(folder)
        rounds = Rounds("package", progress, most=_ROUNDS, seconds=_SECONDS)
        for _ in rounds:
            rounds.measure("git archive", _archive, folder, commit)
            rounds.measure("package", _measure, folder, commit)
    name, rate = "package: MB/s as tar.gz", itemgetter("rate")
    memory = itemgetter("megabytes")
    return [
        rounds.row(name, "package", "git archive", aim=3.0, higher_is_better=True, of=rate),
        rounds.row(
            "package: MB of memory, of 100", "package", _MEMORY, aim=1.0, higher_is_better=False, of=memory
        ),
    ]


def _measure(folder: Path, commit: str) -> Any:
    """Pack in a process of its own; return its rate and memory."""
    command = [sys.executable, "-m", "bench.package", str(folder), commit]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _repository(folder: Path) -> str:
    """Make a bare repository with one commit, packed as a fetch leaves it; return the commit."""
    dice = random.Random(7)
    work = folder / "work"
    for number in range(_FILES):
        path = work / f"part{number % 50}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_content(number % 3, dice))
    git("init", "--quiet", "--initial-branch=main", folder=work)
    git("add", "--all", folder=work)
    git("commit", "--quiet", "--message", "A tree", folder=work)
    git("clone", "--quiet", "--bare", "--no-local", str(work), str(folder / "bare.git"), folder=folder)
    return git("rev-parse", "HEAD", folder=work)


def _content(kind: int, dice: random.Random) -> bytes:
    if kind == 0:
        return " ".join(dice.choices(_WORDS, k=_FILE // 4)).encode()[:_FILE].ljust(_FILE)
    if kind == 1:
        return ",".join(f"{dice.random():.6f}" for _ in range(_FILE // 9)).encode()[:_FILE].ljust(_FILE)
    return dice.randbytes(_FILE)


def _archive(folder: Path, commit: str) -> dict[str, float]:
    started = time.perf_counter()
    subprocess.run(
        [
            "sh",
            "-c",
            'git --git-dir="$1" archive "$2" | gzip -1 >"$3"',
            "sh",
            folder / "bare.git",
            commit,
            folder / "theirs.tar.gz",
        ],
        env=ENVIRONMENT,
        check=True,
    )
    return {"rate": _MEGABYTES / (time.perf_counter() - started)}


async def _pack(folder: Path, commit: str) -> float:
    program = Git(home=folder / "home", allow_http=False, timeout=60)
    reader = TreeReader(program, allow_http=False, hosts=())
    packer = Packer(git=program, warn_above=10**9, most=10**9, most_unpacked=10**10)
    path = folder / "ours.tar.gz"
    path.unlink(missing_ok=True)
    started = time.perf_counter()
    tree = await reader.read(folder / "bare.git", commit=commit, url="", fetch=_no_submodules)
    await asyncio.to_thread(packer.pack, tree, path, package_format="tar.gz", stop=threading.Event())
    return time.perf_counter() - started


async def _no_submodules(_url: str, _commit: str) -> Path:
    raise AssertionError("the tree has no submodules")


def _peak(process: str) -> int:
    """Return the peak memory of a process in bytes; 0 for one that has ended or is not yet git.

    Not by getrusage, which includes the parent's memory at the start of the process; for the same reason a
    child does not count before it has become git.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    if process != "self" and not status.startswith("Name:\tgit"):
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _watch(ended: threading.Event, peaks: dict[int, int]) -> None:
    """Poll the git processes that this process starts, until the end."""
    while not ended.wait(0.005):
        for child in children_of(os.getpid()):
            peaks[child] = max(peaks.get(child, 0), _peak(f"{child}"))


def _main(folder: Path, commit: str) -> None:
    ended = threading.Event()
    peaks: dict[int, int] = {}
    watch = threading.Thread(target=_watch, args=(ended, peaks))
    watch.start()
    try:
        seconds = asyncio.run(_pack(folder, commit))
    finally:
        ended.set()
        watch.join()
    assert peaks, "no git was seen"
    megabytes = (_peak("self") + max(peaks.values())) / 1e6
    print(json.dumps({"rate": _MEGABYTES / seconds, "megabytes": megabytes}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
