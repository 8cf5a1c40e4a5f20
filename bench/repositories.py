"""Many repositories with one push each, beside bare `git fetch`, four at a time, of the same commits.

The gateway runs on SQLite with its default settings; only reconciliation is switched to its longest interval,
because each look at a remote costs a git process. The first push of each repository makes its mirror, and is
not measured; both sides fetch into mirrors that exist. CPU times are those of the kernel, of all threads, and
of all git processes with their children. Then a wrapper counts the git processes that the gateway starts, and
two worker processes are compared with one, on PostgreSQL.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from shutil import which
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Select, func, select, update

from bench.report import Progress, Rounds, Row, measured
from gateway.store.database import Database
from gateway.store.execution_tables import executions
from gateway.store.ready_queue import is_pending
from gateway.store.tables import reconciliations, ref_updates
from testing.git_host import ENVIRONMENT, GitHost, git
from testing.github import push_payload
from testing.postgres import Postgres
from testing.processes import children_of
from testing.service import VALOHAI_YAML, Command, wait_for

_REPOSITORIES = 80
_ROUNDS = 3
_SECONDS = 40
_COUNTED = 20
_OF_WORKERS = 30
_GATEWAY_MS = 20
_GIT_MS = 30
_GIT_PROCESSES = 2
_TICKS = os.sysconf("SC_CLK_TCK")
_AT_ONCE = 4
_PENDING = select(func.count()).select_from(ref_updates).where(is_pending)
_REQUESTS = select(func.count()).select_from(executions)
_UNSEEN = select(func.count()).select_from(reconciliations).where(reconciliations.c.reconciled_at.is_(None))
_WRAPPER = """#!/bin/sh
echo "$*" >>'{log}'
exec '{git}' "$@"
"""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the git host, whose main branch is set to one of its commits after another."""

    name: str
    url: str
    folder: Path
    commits: Sequence[str]

    def push(self, number: int) -> bytes:
        """Move main to a commit as a push would; return GitHub's payload."""
        (self.folder / "refs/heads/main").write_text(self.commits[number] + "\n", encoding="utf-8")
        before = self.commits[number - 1] if number else None
        return push_payload(
            url=self.url,
            full_name=self.name,
            ref="refs/heads/main",
            before=before,
            after=self.commits[number],
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """The wall time of a round in seconds, and CPU times in ms for each repository."""

    seconds: float
    gateway: float
    git: float


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    with tempfile.TemporaryDirectory(prefix="pushgate-bench-") as path:
        folder = Path(path)
        progress(f"repositories: {_REPOSITORIES} of them")
        with GitHost(folder / "git") as host:
            made = make_repositories(host, _REPOSITORIES, commits=_ROUNDS + 1)
            rows = _measure(folder, made, progress)
            progress("repositories: git processes")
            name = f"repositories: git processes for a push, without the fetch's own, of {_GIT_PROCESSES}"
            rows += measured(name, _git_processes, name, folder, made[:_COUNTED])
            progress("repositories: one worker process and two")
            name = "repositories: pushes a second with two worker processes, beside one, on PostgreSQL"
            return [*rows, *measured(name, _workers, name, folder, made[:_OF_WORKERS])]


def make_repositories(host: GitHost, count: int, *, commits: int) -> list[Repository]:
    """Make repositories with different small files, each with a history of so many commits."""
    made = []
    for number in range(count):
        name = f"acme/model-{number}"
        url = host.create(f"{name}.git")
        folder = host.folder / f"{name}.git"
        command = ["git", "fast-import", "--quiet", "--export-marks=marks"]
        stream = "".join(_history(number, commits))
        subprocess.run(command, cwd=folder, env=ENVIRONMENT, input=stream, text=True, check=True)
        marks = dict(line.split() for line in (folder / "marks").read_text(encoding="utf-8").splitlines())
        ids = [marks[f":{commit + 1}"] for commit in range(commits)]
        made.append(Repository(name, url, folder, ids))
        # The first look at the remote learns this position; otherwise others would follow during the rounds.
        made[-1].push(0)
    return made


def _history(number: int, commits: int) -> Iterator[str]:
    files = {"valohai.yaml": f"# model {number}\n{VALOHAI_YAML}", "train.py": f"print({number})\n"}
    for commit in range(commits):
        yield (
            f"commit refs/heads/main\nmark :{commit + 1}\n"
            f"committer Ada Byron <ada@example.org> {1_700_000_000 + commit} +0000\n"
            f"data <<E\nNumber {commit}\nE\n"
        )
        for name, text in {**(files if commit == 0 else {}), "README.md": f"{number}, {commit}\n"}.items():
            yield f"M 100644 inline {name}\ndata <<E\n{text}E\n"


class Gateway:
    """A gateway that is connected with repositories; as a context manager it runs during the block."""

    def __init__(self, data: Path, repositories: Sequence[Repository], **settings: str) -> None:
        """Take settings as `Command` does."""
        self._service = Command(data, RECONCILE_EVERY="86400", **settings)
        self._repositories = repositories
        self._database_url = settings.get("DATABASE_URL", f"sqlite:///{data}/pushgate.db")
        self._processes = int(settings.get("WORKERS", "1"))

    def __enter__(self) -> Self:
        """Start, connect the repositories, and wait until each has a mirror."""
        with ExitStack() as stack:
            stack.enter_context(self._service)
            self._pids = wait_for(self._listening, "all processes listen")
            self._database = stack.enter_context(closing(Database(self._database_url)))
            self._connections = [self._service.connect(one.url, "train@main") for one in self._repositories]
            wait_for(lambda: not self._count(_UNSEEN), "the first reconciliations have ended")
            self.push([one.push(0) for one in self._repositories])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave no process."""
        self._stack.close()

    def push(self, payloads: Sequence[bytes]) -> float:
        """Deliver a push of each repository; return the seconds until all are planned."""
        expected = self._count(_REQUESTS) + len(payloads)
        started = time.perf_counter()
        for connection, payload in zip(self._connections, payloads, strict=True):
            self._service.deliver(connection, payload)
        wait_for(lambda: not self._count(_PENDING), "all pushes are settled")
        seconds = time.perf_counter() - started
        assert self._count(_REQUESTS) == expected, "a push was settled without a request"
        return seconds

    def cost(self, payloads: Sequence[bytes]) -> Cost:
        """Deliver a push of each repository; return what they cost."""
        return self._cost(lambda: self.push(payloads))

    def reconcile(self) -> Cost:
        """Let each repository be reconciled now; return what that costs."""
        return self._cost(self._reconciled)

    def _reconciled(self) -> float:
        now = datetime.now(UTC)
        started = time.perf_counter()
        with self._database.writing() as conn:
            conn.execute(update(reconciliations).values(due_at=now))
        waiting = select(func.count()).select_from(reconciliations)
        waiting = waiting.where(reconciliations.c.reconciled_at < now)
        wait_for(lambda: not self._count(waiting), "all reconciliations have ended")
        return time.perf_counter() - started

    def _cost(self, work: Callable[[], float]) -> Cost:
        """Return the CPU time that some work for each repository costs, and the seconds that it returns."""
        gateway, children = self._cpu()
        seconds = work()
        # The time of a child counts when it has ended.
        wait_for(lambda: not any(map(children_of, self._pids)), "no git runs")
        gateway_after, children_after = self._cpu()
        each = 1000 / len(self._repositories)
        return Cost(seconds, (gateway_after - gateway) * each, (children_after - children) * each)

    def _listening(self) -> set[int] | None:
        pids = {line["pid"] for line in self._service.log() if line["event"] == "listening"}
        return pids if len(pids) == self._processes else None

    def _count(self, query: Select[Any]) -> int:
        with self._database.reading() as conn:
            found: int = conn.execute(query).scalar_one()
            return found

    def _cpu(self) -> tuple[float, float]:
        """Return the CPU seconds of the gateway's processes, and of their children that have ended."""
        own = children = 0
        for pid in self._pids:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
            # https://www.kernel.org/doc/html/latest/filesystems/proc.html: utime, stime, cutime, cstime
            times = [int(field) for field in text.rpartition(")")[2].split()[11:15]]
            own, children = own + sum(times[:2]), children + sum(times[2:])
        return own / _TICKS, children / _TICKS


def _measure(folder: Path, made: Sequence[Repository], progress: Progress) -> list[Row]:
    rounds = Rounds("repositories", progress, most=_ROUNDS, seconds=_SECONDS)
    with Gateway(folder / "data", made) as gateway:
        mirrors = [folder / f"bare-{number}" for number in range(len(made))]
        for mirror, repository in zip(mirrors, made, strict=True):
            git("clone", "--quiet", "--mirror", repository.url, str(mirror), folder=folder)
        for number in rounds:
            payloads = [repository.push(number + 1) for repository in made]
            rounds.measure("git fetch", _fetch_all, mirrors, made, number + 1)
            rounds.measure("push", gateway.cost, payloads)
    return _rows(rounds)


def _fetch_all(mirrors: Sequence[Path], repositories: Sequence[Repository], number: int) -> Cost:
    """Fetch a commit of each repository, four at a time."""
    commands = [
        ("fetch", "--quiet", repository.url, f"+{repository.commits[number]}:refs/heads/main")
        for repository in repositories
    ]
    return bare_git(commands, mirrors)


def bare_git(commands: Sequence[Sequence[str]], folders: Sequence[Path]) -> Cost:
    """Run git commands, each in its folder, four at a time; return what they cost."""

    def run(arguments: Sequence[str], folder: Path) -> float:
        command = ["git", *arguments]
        process = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, f"git {arguments[0]} ended with status {process.returncode}"
        return usage.ru_utime + usage.ru_stime

    started = time.perf_counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        used = sum(pool.map(run, commands, folders))
    return Cost(time.perf_counter() - started, 0, used * 1000 / len(commands))


def _rows(rounds: Rounds) -> list[Row]:
    def row(name: str, yardstick: str | float, of: str, aim: float | None) -> Row:
        title = f"repositories: {name}"
        return rounds.row(title, "push", yardstick, aim=aim, higher_is_better=False, of=attrgetter(of))

    return [
        row(f"s for a push in each of {_REPOSITORIES}, beside git fetch", "git fetch", "seconds", 1.3),
        row(f"ms of CPU for a push, gateway, of {_GATEWAY_MS}", _GATEWAY_MS, "gateway", 1),
        row(f"ms of CPU for a push, git, of {_GIT_MS}", _GIT_MS, "git", 1),
        row("ms of CPU for a push, git, beside git fetch", "git fetch", "git", None),
    ]


def _git_processes(name: str, folder: Path, made: Sequence[Repository]) -> list[Row]:
    """Count the git processes that the gateway starts for a push; the fetch's own children do not count."""
    found = which("git")
    assert found is not None, "git is not installed"
    log, programs = folder / "git.log", folder / "programs"
    programs.mkdir()
    (programs / "git").write_text(_WRAPPER.format(log=log, git=found), encoding="utf-8")
    (programs / "git").chmod(0o755)
    with _first_on_path(programs), Gateway(folder / "counted", made) as gateway:
        log.write_text("", encoding="utf-8")
        gateway.push([repository.push(1) for repository in made])
        started = len(log.read_text(encoding="utf-8").splitlines())
    return [Row(name, started / len(made), _GIT_PROCESSES, aim=1, higher_is_better=False)]


def _workers(name: str, folder: Path, made: Sequence[Repository]) -> list[Row]:
    """Measure one worker process, and then two: both set the refs of the same remotes."""
    rates: dict[int, list[float]] = {}
    with Postgres(durable=True) as postgres:
        for workers in (1, 2):
            settings = {"DATABASE_URL": postgres.database(), "SECRET_KEY": "s" * 32, "WORKERS": str(workers)}
            with Gateway(folder / f"workers-{workers}", made, **settings) as gateway:
                pushed = (
                    gateway.push([one.push(number) for one in made]) for number in range(1, _ROUNDS + 1)
                )
                rates[workers] = [len(made) / seconds for seconds in pushed]
    return [Row(name, rates[2], rates[1], aim=None, higher_is_better=True)]


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before
