"""Fetching: from the 202 to the stored execution request, beside a bare `git fetch` of the same commit.

A repository of 20,000 commits and 5,000 files, served by `git http-backend`; its mirror is warm. Then a
hundred pushes at once to one repository, and how many fetches they cost.
"""

import subprocess
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.report import Progress, Rounds, Row, measured
from testing.git_host import ENVIRONMENT, GitHost, WorkTree, git
from testing.github import push_payload
from testing.service import VALOHAI_YAML, Command

_COMMITS = 20_000
_FILES = 5_000
_ROUNDS = 15
_SECONDS = 30
_WAITING = 100
_NAME = "acme/large"


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    with tempfile.TemporaryDirectory(prefix="pushgate-bench-") as path:
        folder = Path(path)
        progress(f"fetch: a repository of {_COMMITS:,} commits")
        with GitHost(folder / "git") as host:
            url = host.create(f"{_NAME}.git")
            _fill(host.folder / f"{_NAME}.git")
            tree = WorkTree(folder / "clone", url)
            tree.git("fetch", "--quiet", "--depth=1", "origin", "main")
            tree.git("checkout", "--quiet", "-B", "main", "FETCH_HEAD")
            git("clone", "--quiet", "--mirror", url, "bare.git", folder=folder)
            with Command(folder / "data") as service:
                return _measure(service, host, tree, url, folder / "bare.git", progress)


def _measure(
    service: Command, host: GitHost, tree: WorkTree, url: str, bare: Path, progress: Progress
) -> list[Row]:
    connection = service.connect(url, "train@main")
    before = tree.head()
    rounds = Rounds("fetch", progress, most=_ROUNDS + 1, seconds=_SECONDS)
    for number in rounds:
        after = tree.commit(f"Number {number}", {f"new/{number}": str(number)})
        tree.push()
        # The first push makes the mirror.
        warm = "" if number else "first "
        rounds.measure(f"{warm}bare fetch", _bare_fetch, bare, url, after)
        rounds.measure(f"{warm}push", _hand_over, service, connection, url, before, after)
        before = after
    name = "fetch: ms from the 202 to the request"
    hot = rounds.row(name, "push", "bare fetch", aim=1.3, higher_is_better=False)
    progress(f"fetch: {_WAITING} pushes at once")
    name = f"fetch: fetches for {_WAITING} waiting pushes"
    return [hot, *measured(name, _storm_rows, name, service, host, tree, url, connection)]


def _bare_fetch(bare: Path, url: str, commit: str) -> float:
    """Fetch a commit into a mirror; return the ms."""
    started = time.perf_counter()
    git("fetch", "--quiet", url, f"+{commit}:refs/heads/main", folder=bare)
    return (time.perf_counter() - started) * 1000


def _storm_rows(
    name: str, service: Command, host: GitHost, tree: WorkTree, url: str, connection: Any
) -> list[Row]:
    fetches = _storm(service, host, tree, url, connection)
    return [Row(name, fetches, 1, aim=3, higher_is_better=False)]


def _hand_over(service: Command, connection: Any, url: str, before: str, after: str) -> float:
    """Deliver a push; return the ms from the 202 to its execution request."""
    payload = push_payload(url=url, full_name=_NAME, ref="refs/heads/main", before=before, after=after)
    _, answer = service.deliver(connection, payload)
    accepted = time.time()
    service.settled(answer["delivery"])
    [execution] = service.api.get("/executions", delivery=answer["delivery"])["items"]
    return (datetime.fromisoformat(execution["planned_at"]).timestamp() - accepted) * 1000


def _storm(service: Command, host: GitHost, tree: WorkTree, url: str, connection: Any) -> int:
    """Deliver many pushes while the remote does not answer; return how many fetches they cost then."""
    commits = [
        tree.head(),
        *(tree.commit(f"Storm {number}", {"storm": str(number)}) for number in range(_WAITING)),
    ]
    tree.push()
    host.answers.clear()
    host.visits.clear()
    for before, after in pairwise(commits):
        payload = push_payload(url=url, full_name=_NAME, ref="refs/heads/main", before=before, after=after)
        _, answer = service.deliver(connection, payload)
    host.answers.set()
    service.settled(answer["delivery"])
    return len(host.visits)


def _fill(bare: Path) -> None:
    """Write the history as one `git fast-import` stream: the files first, then one change per commit."""
    parts = ["blob\nmark :1\ndata <<E\n" + VALOHAI_YAML + "E\n"]
    for number in range(_COMMITS):
        parts.append(
            "commit refs/heads/main\n"
            f"committer Ada Byron <ada@example.org> {1_700_000_000 + number} +0000\n"
            f"data <<E\nNumber {number}\nE\n"
        )
        if number == 0:
            parts.append("M 100644 :1 valohai.yaml\n")
            parts += [_file(name, "first") for name in range(_FILES)]
        else:
            parts.append(_file(number % _FILES, str(number)))
    command = ["git", "fast-import", "--quiet"]
    subprocess.run(command, cwd=bare, env=ENVIRONMENT, input="".join(parts), text=True, check=True)


def _file(number: int, text: str) -> str:
    return f"M 100644 inline data/{number % 50}/{number}.csv\ndata <<E\n{text},{number}\nE\n"
