"""A repository of 1,300 files, the modules of Python's standard library, from the delivery to the package.

The first push, beside `git clone --mirror` and `git archive | gzip -1`; later pushes, which change one file,
beside `git fetch` and the same archive.
"""

import shutil
import subprocess
import sysconfig
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from bench.report import Progress, Rounds, Row
from testing.git_host import ENVIRONMENT, GitHost, WorkTree, git
from testing.github import push_payload
from testing.service import VALOHAI_YAML, Command

_FILES = 1_300
_ROUNDS = 3
_SECONDS = 35
_NAME = "acme/library"
_ARCHIVE = 'git --git-dir="$1" archive "$2" | gzip -1 >"$1/archive.tar.gz"'


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    rounds = Rounds("library", progress, most=_ROUNDS, seconds=_SECONDS)
    with tempfile.TemporaryDirectory(prefix="pushgate-bench-") as path:
        folder = Path(path)
        with GitHost(folder / "git") as host, Command(folder / "data") as service:
            url = host.create(f"{_NAME}.git")
            tree = WorkTree(folder / "clone", url)
            _copy_library(tree.folder)
            before = tree.commit("A library", {"valohai.yaml": VALOHAI_YAML})
            tree.push()
            for number in rounds:
                mirror = folder / f"bare-{number}.git"
                # A connection has a mirror of its own, so each one's first push clones.
                connection = service.connect(url, "train@main", project=f"library-{number}")
                rounds.measure("clone", _bare, ("clone", "--mirror", url, str(mirror)), mirror, before)
                rounds.measure("first push", _push, service, connection, url, None, before)
                after = tree.commit(f"Number {number}", {"train.py": f"print({number})\n"})
                tree.push()
                fetch = ("--git-dir", str(mirror), "fetch", url, f"+{after}:refs/heads/main")
                rounds.measure("fetch", _bare, fetch, mirror, after)
                rounds.measure("later push", _push, service, connection, url, before, after)
                before = after
    name = f"library: ms for the first push of {_FILES:,} files, beside clone and archive"
    later = "library: ms for a later push, beside fetch and archive"
    return [
        rounds.row(name, "first push", "clone", aim=1.1, higher_is_better=False),
        rounds.row(later, "later push", "fetch", aim=1, higher_is_better=False),
    ]


def _copy_library(folder: Path) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    modules = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    for module in islice(modules, _FILES):
        target = folder / module.relative_to(library)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, target)


def _bare(command: tuple[str, ...], mirror: Path, commit: str) -> float:
    """Run a git command that brings a commit, then archive the commit; return the ms."""
    started = time.perf_counter()
    git(*command, folder=mirror.parent)
    subprocess.run(["sh", "-c", _ARCHIVE, "sh", mirror, commit], env=ENVIRONMENT, check=True)
    return (time.perf_counter() - started) * 1000


def _push(service: Command, connection: Any, url: str, before: str | None, after: str) -> float:
    """Deliver a push; return the ms until its request and package are stored."""
    payload = push_payload(url=url, full_name=_NAME, ref="refs/heads/main", before=before, after=after)
    started = time.perf_counter()
    _, answer = service.deliver(connection, payload)
    [update] = service.settled(answer["delivery"])["updates"]
    assert update["state"] == "planned", update
    return (time.perf_counter() - started) * 1000
