"""What many connections and long outages cost: reconciliation, a broker that comes back, housekeeping.

- 10,000 connections on PostgreSQL: a look for a due reconciliation, the reconciliations that the store
  allows, and what one costs with its `git ls-remote`, in CPU time of the kernel.
- An hour of pushes that waits for the broker, inserted at once: the rate of the relay beside that with few
  requests. All messages are then read from the queue: each must be there once, the oldest first.
- 5,000 mirrors: what a round of housekeeping costs, and how long it blocks the event loop.
"""

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any

import aio_pika
import structlog
from sqlalchemy import update

from bench.connections import add_connections, analyze
from bench.report import Progress, Rounds, Row, measured
from bench.repositories import Cost, Gateway, Repository, bare_git, make_repositories
from gateway.backoff import backoff
from gateway.fetch.housekeeping import Housekeeper
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.relay import FIRST_DELAY, MAX_DELAY, Relay
from gateway.publish.topology import Topology
from gateway.store import accept, connections, executions, reconciliations, work_queue
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.outbox import Outbox
from gateway.store.tables import reconciliations as reconciliations_table
from gateway.worker.reconciler import Reconciler
from testing.broker import Broker
from testing.fetching import make_fetching
from testing.git_host import GitHost, WorkTree
from testing.postgres import Postgres
from testing.records import A, arrival, made, move, request

_CONNECTIONS = 10_000
_BATCH = 500
_EVERY = 300.0
# What 10,000 connections need at the default interval.
_NEEDED_PER_SECOND = _CONNECTIONS / _EVERY
_PER_HOST = 16
_LOOKS = 20
_MOST_MS = 5
_STORE_SECONDS = 2.0
_CONCURRENCY = 4
_REPOSITORIES = 30
# Half a core for 10,000 connections.
_GATEWAY_MS = 15
_ROUNDS = 2
_SECONDS = 40

_HOUR = 3600
_PUSHES = _HOUR * 4
_FEW = 4096
# A relay reads 1,024 requests at once.
_OUT_OF_PLACE = 2048
_SENDERS = 64
_POLL_SECONDS = 0.1
_BODY = b'{"padding": "' + b"x" * 2000 + b'"}'

_MIRRORS = 5_000
_FEW_MIRRORS = 500
_STALL_MS = 100
_ROUND_SECONDS = 300
_SHARE = 0.01


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with Postgres(durable=True) as postgres, tempfile.TemporaryDirectory(prefix="pushgate-bench-") as path:
        folder = Path(path)
        return [
            *measured("limits: reconciliations in the store", _stored, postgres, progress),
            *measured("limits: reconciliations with git", _with_git, postgres, folder, progress),
            *measured("limits: an outage of the broker", _outage, postgres, progress),
            *measured("limits: housekeeping", _housekeeping, folder, progress),
        ]


def _stored(postgres: Postgres, progress: Progress) -> list[Row]:
    progress(f"limits: {_CONNECTIONS:,} connections")
    rounds = Rounds("limits", progress, most=_ROUNDS, seconds=_SECONDS)
    with closing(Database(postgres.database())) as database:
        database.migrate()
        add_connections(database, _CONNECTIONS, hosts=1)
        for _ in rounds:
            _postpone(database, timedelta(hours=1))
            rounds.measure("none due", _look_ms, database)
            _postpone(database, timedelta())
            rounds.measure("rate", lambda: asyncio.run(_rate(database)))
            _postpone(database, timedelta())
            _fill_host(database)
            rounds.measure("full", _look_ms, database)
    all_due = f"limits: ms of a look, {_CONNECTIONS:,} reconciliations due on a host at its limit"
    none_due = f"limits: ms of a look, none of {_CONNECTIONS:,} reconciliations due"
    rate = f"limits: reconciliations a second, without git, one process, of {_NEEDED_PER_SECOND:.0f}"
    return [
        rounds.row(none_due, "none due", _MOST_MS, aim=1, higher_is_better=False),
        rounds.row(all_due, "full", _MOST_MS, aim=1, higher_is_better=False),
        rounds.row(rate, "rate", _NEEDED_PER_SECOND, aim=1, higher_is_better=True),
    ]


def _postpone(database: Database, delay: timedelta) -> None:
    """Let all reconciliations be due in this time; none is held."""
    with database.writing() as conn:
        due_at = datetime.now(UTC) + delay
        conn.execute(update(reconciliations_table).values(due_at=due_at, held_until=None))
    analyze(database)


def _fill_host(database: Database) -> None:
    """Claim as many as may run at once on the host."""
    for _ in range(_PER_HOST):
        now = datetime.now(UTC)
        with database.writing() as conn:
            until = now + timedelta(minutes=15)
            assert reconciliations.claim(conn, now=now, until=until, per_host=_PER_HOST), "a claim failed"


def _look_ms(database: Database) -> float:
    """Return the median duration of a look, in ms; it must find nothing."""
    durations = []
    for _ in range(_LOOKS):
        started = time.perf_counter()
        with database.reading() as conn:
            found = reconciliations.is_due(conn, now=datetime.now(UTC), per_host=_PER_HOST)
        durations.append((time.perf_counter() - started) * 1000)
        assert not found, "a reconciliation was found"
    return statistics.median(durations)


@dataclass
class _Remotes:
    """Remotes that answer at once."""

    answers: int = 0

    async def refs(self, connection: Connection) -> dict[str, str]:  # noqa: ARG002
        self.answers += 1
        return {"refs/heads/main": A}

    async def default_branch(self, connection: Connection) -> str | None:  # noqa: ARG002
        return "main"


async def _rate(database: Database) -> float:
    """Return the reconciliations a second of as many tasks as a process has by default."""
    remotes, notifier = _Remotes(), Notifier()
    reconciler = Reconciler(
        database=database,
        remotes=remotes,
        wakeups=notifier.subscribe(),
        notify=notifier.notify,
        every=_EVERY,
        grace=10,
        per_host=_PER_HOST,
    )
    started = time.perf_counter()
    tasks = [asyncio.create_task(reconciler.run()) for _ in range(_CONCURRENCY)]
    await asyncio.sleep(_STORE_SECONDS)
    rate = remotes.answers / (time.perf_counter() - started)
    await _cancelled(*tasks)
    return rate


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def _with_git(postgres: Postgres, folder: Path, progress: Progress) -> list[Row]:
    progress(f"limits: reconciliation of {_REPOSITORIES} repositories")
    rounds = Rounds("limits: git ls-remote", progress, most=_ROUNDS, seconds=_SECONDS)
    with GitHost(folder / "git") as host:
        repositories = make_repositories(host, _REPOSITORIES, commits=1)
        url = postgres.database()
        with Gateway(folder / "data", repositories, DATABASE_URL=url, SECRET_KEY="s" * 32) as gateway:
            for _ in rounds:
                rounds.measure("git ls-remote", _list_refs, repositories)
                rounds.measure("reconciliation", gateway.reconcile)

    def row(name: str, yardstick: str | float, of: Callable[[Any], float], aim: float | None) -> Row:
        title = f"limits: {name}"
        return rounds.row(title, "reconciliation", yardstick, aim=aim, higher_is_better=False, of=of)

    seconds = f"s to reconcile {_REPOSITORIES} repositories, beside git ls-remote four at a time"
    return [
        row(seconds, "git ls-remote", attrgetter("seconds"), None),
        row(f"ms of CPU for one, gateway, of {_GATEWAY_MS}", _GATEWAY_MS, attrgetter("gateway"), 1),
        row("ms of CPU for one, git, beside git ls-remote", "git ls-remote", attrgetter("git"), 1.2),
    ]


def _list_refs(repositories: Sequence[Repository]) -> Cost:
    commands = [("ls-remote", "--heads", "--tags", repository.url) for repository in repositories]
    return bare_git(commands, [repository.folder for repository in repositories])


def _outage(postgres: Postgres, progress: Progress) -> list[Row]:
    progress(f"limits: an outbox of {_PUSHES:,} requests")
    rounds = Rounds("limits: the broker comes back", progress, most=1, seconds=30)
    with Broker() as broker:
        for _ in rounds:
            rounds.measure("usual", lambda: asyncio.run(_drained(postgres, broker, _FEW)))
            rounds.measure("backlog", lambda: asyncio.run(_drained(postgres, broker, _PUSHES)))
    rate = f"limits: messages a second after an hour without a broker, beside {_FEW:,} in the outbox"
    received = f"limits: messages received once and in order, of {_PUSHES:,}"
    delay = "limits: s until the next try after an hour without a broker, at most, of 30"
    return [
        rounds.row(rate, "backlog", "usual", aim=0.8, higher_is_better=True, of=attrgetter("rate")),
        rounds.row(received, "backlog", _PUSHES, aim=1, higher_is_better=True, of=attrgetter("received")),
        Row(delay, _reconnect_seconds(), MAX_DELAY, 1, higher_is_better=False),
    ]


@dataclass(frozen=True, slots=True)
class _Drained:
    """The rate of a relay in messages a second, and how many were received, each once and in order."""

    rate: float
    received: int


async def _drained(postgres: Postgres, broker: Broker, count: int) -> _Drained:
    """Publish an outbox of so many requests, then read all of them from the queue."""
    topology = Topology(exchange=f"bench-{count}", queue=f"bench-{count}")
    with closing(Database(postgres.database())) as database:
        await asyncio.to_thread(_fill_outbox, database, count)
        publisher = RabbitMQ(broker.url, public_url="https://push.example", topology=topology)
        await publisher.open()
        running = asyncio.create_task(Relay(Outbox(database), publisher, Notifier().subscribe()).run())
        # The seconds until it leads do not count.
        while (done := await _published(database, count)) == 0:  # noqa: ASYNC110 - the code stays unchanged
            await asyncio.sleep(_POLL_SECONDS)
        started = time.perf_counter()
        while await _published(database, count) < count:  # noqa: ASYNC110 - as above
            await asyncio.sleep(_POLL_SECONDS)
        rate = (count - done) / (time.perf_counter() - started)
        await _cancelled(running)
    return _Drained(rate, _in_order(await _received(broker.url, topology.queue, count)))


async def _published(database: Database, count: int) -> int:
    """Return how many requests of an outbox precede the first pending one."""
    found = await database.read(executions.pending, limit=1, without=())
    return found[0].seq - 1 if found else count


def _fill_outbox(database: Database, count: int) -> None:
    """Store so many requests of all senders, in turn."""
    database.migrate()
    names = [f"{number:024x}" for number in range(_SENDERS)]
    now = datetime.now(UTC)
    with database.writing() as conn:
        for name in names:
            connections.add(conn, made(name, name=name))
        accept.record(conn, [arrival(move(None, A), id="d1", connection=names[0], received_at=now)])
        [pushed] = work_queue.pending(conn, names[0], limit=1)
        for start in range(0, count, _BATCH):
            numbers = range(start, min(start + _BATCH, count))
            new = [
                request(f"{n:08}", connection=names[n % _SENDERS], trigger=f"t{n}", body=_BODY)
                for n in numbers
            ]
            executions.add(conn, new, ref_update=pushed.seq, now=now)


async def _received(url: str, queue: str, count: int) -> list[int]:
    """Return the numbers of the messages in a queue, which must be as many as expected."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        source = await channel.get_queue(queue)
        ids: list[int] = []
        async with source.iterator(no_ack=True, timeout=10) as messages:
            async for message in messages:
                ids.append(int(message.message_id or -1))
                if len(ids) == count:
                    break
        left = await channel.declare_queue(queue, passive=True)
        assert not left.declaration_result.message_count, "there are more messages than requests"
        return ids


def _in_order(numbers: Sequence[int]) -> int:
    """Return how many messages came once, after those of their sender, and with others of their age."""
    last: dict[int, int] = {}
    good = 0
    for place, number in enumerate(numbers):
        sender = number % _SENDERS
        good += last.get(sender, -1) < number and abs(place - number) < _OUT_OF_PLACE
        last[sender] = max(number, last.get(sender, -1))
    return good


def _reconnect_seconds() -> float:
    """Return the longest delay between two tries after an hour of failures, of a hundred such hours."""
    longest = 0.0
    for _ in range(100):
        passed, failures, delay = 0.0, 0, 0.0
        while passed < _HOUR:
            delay = backoff(failures, first=FIRST_DELAY, longest=MAX_DELAY)
            passed, failures = passed + delay, failures + 1
        longest = max(longest, delay)
    return longest


@dataclass(frozen=True, slots=True)
class _Tidied:
    """The CPU time of a round of housekeeping, and the longest delay of the event loop meanwhile."""

    cpu: float
    stall_ms: float


def _housekeeping(folder: Path, progress: Progress) -> list[Row]:
    progress(f"limits: {_MIRRORS:,} mirrors")
    fetching = make_fetching(folder)
    with GitHost(folder / "mirrored") as host:
        url = host.create("acme/digits.git")
        tree = WorkTree(folder / "tree", url)
        head = tree.commit("First", {"valohai.yaml": "[]\n", "train.py": "print(1)\n"})
        tree.push()
        fetching.update(url, ("refs/heads/main", head), connection="0")
    keeper = Housekeeper(git=fetching.git, mirrors=fetching.mirrors, budget=2**40)
    rounds = Rounds("limits: housekeeping", progress, most=_ROUNDS, seconds=_SECONDS)
    _copy_mirror(fetching.mirrors.path, 1, _FEW_MIRRORS)
    few = [asyncio.run(_tidied(keeper)) for _ in range(_ROUNDS)]
    each = min(one.cpu for one in few) / _FEW_MIRRORS
    _copy_mirror(fetching.mirrors.path, _FEW_MIRRORS, _MIRRORS)
    for _ in rounds:
        rounds.measure("tidy", lambda: asyncio.run(_tidied(keeper)))

    def row(name: str, yardstick: float, of: Callable[[Any], float], aim: float) -> Row:
        title = f"limits: {name}"
        return rounds.row(title, "tidy", yardstick, aim=aim, higher_is_better=False, of=of)

    budget = _ROUND_SECONDS * _SHARE
    return [
        row(f"s of CPU to tidy {_MIRRORS:,} mirrors, of 1 % of a round", budget, attrgetter("cpu"), 1),
        row(
            f"ms of CPU for each of {_MIRRORS:,} mirrors, beside each of {_FEW_MIRRORS}",
            each * 1000,
            lambda one: one.cpu * 1000 / _MIRRORS,
            1.5,
        ),
        row(f"ms that tidying blocks the event loop, of {_STALL_MS}", _STALL_MS, attrgetter("stall_ms"), 1),
    ]


def _copy_mirror(path: Callable[[str], Path], start: int, end: int) -> None:
    """Copy the first mirror under other names, with hard links."""
    for number in range(start, end):
        shutil.copytree(path("0"), path(str(number)), copy_function=os.link)
        path(str(number)).with_suffix(".lock").touch()


async def _tidied(keeper: Housekeeper) -> _Tidied:
    """Tidy up once, while a task wakes up every millisecond."""
    delays: list[float] = []

    async def tick() -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            delays.append(time.perf_counter() - started - 0.001)

    ticking = asyncio.create_task(tick())
    started = time.process_time()
    await keeper.tidy()
    cpu = time.process_time() - started
    await _cancelled(ticking)
    return _Tidied(cpu, max(delays) * 1000)
