"""PostgreSQL fails over to a synchronous standby while deliveries arrive, as when the primary's power fails.

DATABASE_URL of a web process and of a worker names both servers. Four clients post signed deliveries
without a pause, four read the API, and one pushes to a repository and repeats each delivery until it is
accepted. The standby is promoted three seconds after the primary's death: tools that do this automatically
take longer. In the end, all deliveries that were answered with 2xx must be in the standby's store, and all
pushes published. The yardsticks are fixed: the patience of providers in seconds, and the connections for
which docs/operate.md says to reserve room.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from operator import attrgetter
from pathlib import Path
from threading import Event
from typing import Any

import psycopg

from bench.report import Progress, Rounds, Row
from gateway.cli.api_client import ApiError
from testing.broker import Broker
from testing.git_host import GitHost
from testing.postgres import Postgres
from testing.service import Command, Project, Service, wait_for

_ROUNDS = 3
_SECONDS = 45
_CLIENTS = 4
_LOAD_SECONDS = 3.0
_OUTAGE_SECONDS = 3.0
_PAUSE_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0
_CONNECTIONS_OF_WEB = 10
_CONNECTIONS_OF_WORKER = 8
_HELD = "SELECT application_name, count(*) FROM pg_stat_activity GROUP BY application_name"


@dataclass(frozen=True, slots=True)
class _Answer:
    """A delivery that was answered: when it was sent, after how many seconds, and how."""

    sent_at: float
    seconds: float
    status: int
    delivery: str | None

    @property
    def is_accepted(self) -> bool:
        return self.status == HTTPStatus.ACCEPTED


@dataclass(slots=True)
class _Failover:
    """What clients saw of one failover; times are in seconds since 1970."""

    answers: list[_Answer] = field(default_factory=list)
    pushes: int = 0
    killed_at: float = 0.0
    promoted_at: float = 0.0
    published_at: float = 0.0
    lost: int = 0
    connections: dict[str, int] = field(default_factory=dict)

    @property
    def accepted_at(self) -> float | None:
        """When the first delivery was accepted that was sent after the primary's death."""
        later = [one for one in list(self.answers) if one.is_accepted and one.sent_at > self.killed_at]
        return min((one.sent_at + one.seconds for one in later), default=None)

    def until_accepted(self) -> float:
        """Return the seconds from the promotion to the first accepted delivery."""
        assert self.accepted_at is not None
        return self.accepted_at - self.promoted_at

    def until_published(self) -> float:
        """Return the seconds from the promotion to the first published request."""
        return self.published_at - self.promoted_at

    def slowest(self) -> float:
        """Return how many seconds a client waited for an answer at most."""
        return max(one.seconds for one in self.answers)

    def surprises(self) -> int:
        """Return how many answers were neither accepted nor refused with 503."""
        return sum(
            one.status not in {HTTPStatus.ACCEPTED, HTTPStatus.SERVICE_UNAVAILABLE} for one in self.answers
        )


class _Clients:
    """Threads that use a web process and note its answers, within the block."""

    def __init__(self, web: Service, project: Project, failover: _Failover) -> None:
        self._web = web
        self._project = project
        self._failover = failover
        self._connection = web.connect(project.url, "train@main")
        self._is_over = Event()
        self._threads = ThreadPoolExecutor(2 * _CLIENTS + 1)

    def __enter__(self) -> None:
        tasks = [self._post, self._read] * _CLIENTS + [self._push]
        self._running = [self._threads.submit(task) for task in tasks]

    def __exit__(self, *_error: object) -> None:
        self._is_over.set()
        self._threads.shutdown()
        for task in self._running:
            task.result()

    def _is_accepted(self, body: bytes, event: str) -> bool:
        sent_at = time.time()
        status, answer = self._web.deliver(self._connection, body, event=event)
        taken = _Answer(sent_at, time.time() - sent_at, status, answer.get("delivery"))
        self._failover.answers.append(taken)
        if not taken.is_accepted:
            self._is_over.wait(_PAUSE_SECONDS)
        return taken.is_accepted

    def _post(self) -> None:
        while not self._is_over.is_set():
            self._is_accepted(b"{}", "star")

    def _push(self) -> None:
        before = self._project.first
        while not self._is_over.is_set():
            files = {"train.py": f"print({self._failover.pushes})\n"}
            after = self._project.push("Next", files)
            while not self._is_accepted(self._project.payload(before, after), "push"):
                if self._is_over.is_set():
                    return
            self._failover.pushes += 1
            before = after

    def _read(self) -> None:
        while not self._is_over.wait(_PAUSE_SECONDS):
            with suppress(ApiError):
                self._web.api.get("/deliveries")


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    with (
        tempfile.TemporaryDirectory(prefix="pushgate-bench-") as path,
        Broker() as broker,
        GitHost(Path(path) / "git") as host,
    ):
        rounds = Rounds("failover", progress, most=_ROUNDS, seconds=_SECONDS)
        for number in rounds:
            folder = Path(path) / str(number)
            folder.mkdir()
            rounds.measure("failover", _fail_over, folder, broker, host)
    return _rows(rounds)


def _fail_over(folder: Path, broker: Broker, host: GitHost) -> _Failover:
    failover = _Failover()
    with (
        Postgres(durable=True) as primary,
        Postgres(durable=True, primary=primary) as standby,
        ExitStack() as stack,
    ):
        primary.wait_for_standby()
        url = primary.database().replace(primary.address, f"{primary.address},{standby.address}")
        settings = {
            "SECRET_KEY": "s" * 32,
            "AMQP_URL": broker.url,
            "AMQP_EXCHANGE": folder.name,
            "AMQP_QUEUE": folder.name,
            "PACKAGES_URL": (folder / "packages").as_uri(),
        }
        web, _ = (
            stack.enter_context(Command(folder / role, ROLE=role, DATABASE_URL=_as(role, url), **settings))
            for role in ("web", "worker")
        )
        project = Project(host, folder, f"acme/digits{folder.name}")
        with _Clients(web, project, failover):
            _watch(primary, failover, time.time() + _LOAD_SECONDS)
            primary.kill()
            failover.killed_at = time.time()
            time.sleep(_OUTAGE_SECONDS)
            standby.promote()
            failover.promoted_at = time.time()
            wait_for(lambda: failover.accepted_at, "a delivery is accepted")
            _watch(standby, failover, time.time() + _LOAD_SECONDS)
        _settle(web, failover)
        with psycopg.connect(url) as store:
            stored = {row[0] for row in store.execute("SELECT id FROM deliveries")}
        failover.lost = len({one.delivery for one in failover.answers if one.is_accepted} - stored)
    return failover


def _as(role: str, url: str) -> str:
    return f"{url}?target_session_attrs=read-write&application_name={role}"


def _watch(server: Postgres, failover: _Failover, until: float) -> None:
    """Note the most connections of each role."""
    held = failover.connections
    with psycopg.connect(server.administration, autocommit=True) as store:
        while time.time() < until:
            for role, count in store.execute(_HELD):
                held[role] = max(count, held.get(role, 0))
            time.sleep(_PAUSE_SECONDS)


def _settle(web: Service, failover: _Failover) -> None:
    """Wait until each push is published, and note when the first one was after the promotion."""

    def published() -> list[Any] | None:
        found: list[Any] = web.api.get("/executions", state="published", limit=200)["items"]
        return found if len(found) >= failover.pushes else None

    found = wait_for(published, f"all of {failover.pushes} pushes are published")
    times = [datetime.fromisoformat(one["published_at"]).timestamp() for one in found]
    failover.published_at = min(one for one in times if one > failover.promoted_at)


def _rows(rounds: Rounds) -> list[Row]:
    def row(name: str, of: Callable[[_Failover], float], yardstick: float, *, aim: float = 1) -> Row:
        name = f"failover: {name}"
        return rounds.row(name, "failover", yardstick, aim=aim, higher_is_better=False, of=of)

    return [
        row("s from the promotion to an accepted delivery", _Failover.until_accepted, _PATIENCE_SECONDS),
        row("s from the promotion to a published push", _Failover.until_published, _PATIENCE_SECONDS),
        row("s until the slowest answer", _Failover.slowest, _PATIENCE_SECONDS),
        row("accepted deliveries that were lost", attrgetter("lost"), 1, aim=0),
        row("answers other than 202 and 503", _Failover.surprises, 1, aim=0),
        row("connections of a web process", lambda one: one.connections["web"], _CONNECTIONS_OF_WEB),
        row("connections of a worker", lambda one: one.connections["worker"], _CONNECTIONS_OF_WORKER),
    ]
