"""The hand-off: stored requests to a quorum queue with confirms, beside a bare aio-pika loop.

The relay is measured twice: requests without packages, and with packages whose URLs it signs. All have the
same window, the same number of messages, and a queue of the same kind, in turn in one run. Then the way
of a push, from the webhook to the message, by stage, on a mirror that is warm.
"""

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import sqlalchemy
import structlog
import uvloop

from bench.report import Progress, Rounds, Row, measured
from gateway.crypto.signed_tokens import SignedTokens
from gateway.messages.packages import PlannedPackage
from gateway.messages.packages import with_package as with_package_in
from gateway.packages.signing import PackageSigner
from gateway.packages.storage import PackageStorage
from gateway.publish.cloudevents import message, routing_key
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.relay import Relay
from gateway.publish.topology import Topology
from gateway.store import accept, connections, executions, packages, work_queue
from gateway.store.database import Database
from gateway.store.executions import NewRequest
from gateway.store.notify import Notifier
from gateway.store.outbox import Outbox
from gateway.store.packages import Build, KeptPackage
from testing import records
from testing.broker import Broker
from testing.git_host import GitHost
from testing.service import Command, Project

NAMES = [f"{number % 16:x}{number:03}" for number in range(64)]
_EACH = 128
MESSAGES = len(NAMES) * _EACH
_WINDOW = 64
_ROUNDS = 9
_SECONDS = 45
_BODY = b'{"padding": "' + b"x" * 2000 + b'"}'
_PUSHES = 40
PUBLIC_URL = "https://push.example"


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    # Log lines for each batch do not belong in the table.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with Broker() as broker, tempfile.TemporaryDirectory(prefix="pushgate-bench-") as path:
        rounds = Rounds("relay", progress, most=_ROUNDS, seconds=_SECONDS)
        for number in rounds:
            for what, is_signed in (("bare", False), ("relay", False), ("signed", True)):
                database = filled(f"sqlite:///{path}/{what}-{number}.db", NAMES, with_packages=is_signed)
                topology = Topology(exchange=f"{what}-{number}", queue=f"{what}-{number}")
                publish = bare if what == "bare" else _relayed
                rounds.measure(what, lambda: run_as_served(publish(broker.url, database, topology)))  # noqa: B023
                database.close()
        name = "relay: confirmed messages per second"
        rates = [
            rounds.row(name, "relay", "bare", aim=0.95, higher_is_better=True),
            rounds.row(f"{name}, with signed packages", "signed", "bare", aim=0.95, higher_is_better=True),
        ]
        progress("relay: from the webhook to the message")
        return [*rates, *measured("push to message", _stages, Path(path), broker)]


def run_as_served(publishing: Coroutine[Any, Any, float]) -> float:
    """Run on the event loop that the service uses."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(publishing)


def filled(url: str, names: Sequence[str], *, with_packages: bool) -> Database:
    """Return a store with many pending requests of connections with these names, in turn."""
    database, now = Database(url), datetime.now(UTC)
    database.migrate()
    with database.writing() as conn:
        updates = [_pushed(conn, name) for name in names]
        if with_packages:
            for name in names:
                packages.keep(conn, _package(name, now=now), _build(name))
        for number in range(_EACH):
            requests = [_request(name, number, with_package=with_packages) for name in names]
            executions.add(conn, requests, ref_update=updates[0], now=now)
    return database


def _pushed(conn: sqlalchemy.Connection, connection: str) -> int:
    """Store a connection and a push of it; return the number of its ref update."""
    connections.add(conn, records.made(connection))
    push = records.arrival(records.move(None, records.A), id=f"d-{connection}", connection=connection)
    accept.record(conn, [push])
    return work_queue.pending(conn, connection, limit=1)[0].seq


def _request(connection: str, number: int, *, with_package: bool) -> NewRequest:
    name, body = f"{connection}-{number}", _BODY
    if with_package:
        package = _package(connection, now=records.NOW)
        planned = PlannedPackage(id=package.id, format=package.format, sha256=package.sha256, size=1)
        body = with_package_in(_BODY[:-1] + b',"package":null}', planned.unsigned("", now=records.NOW))
    return records.request(
        name, connection=connection, delivery=f"d-{connection}", trigger=f"t{number}", body=body
    )


def _package(connection: str, *, now: datetime) -> KeptPackage:
    digest = hashlib.sha256(connection.encode()).hexdigest()
    return KeptPackage(
        id=digest,
        format="tar.gz",
        object=f"{digest}/{digest[:16]}.tar.gz",
        sha256=digest,
        size=1,
        tar_size=1,
        files=1,
        warnings=(),
        made_at=now,
        last_used_at=now,
    )


def _build(connection: str) -> Build:
    return Build(connection=connection, commit=records.A, format="tar.gz", rules="1")


async def bare(url: str, database: Database, topology: Topology) -> float:
    """Publish the stored requests, read beforehand, with the bare library."""
    with database.reading() as conn:
        waiting = executions.pending(conn, limit=MESSAGES, without=(), most_bytes=10**9)
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await topology.establish(connection)
        exchange = await channel.get_exchange(topology.exchange)
        window = asyncio.Semaphore(_WINDOW)

        async def publish(number: int) -> None:
            async with window:
                one = waiting[number]
                content = message(one, public_url=PUBLIC_URL)
                await exchange.publish(content, routing_key(one), mandatory=True, timeout=30)

        started = time.perf_counter()
        await asyncio.gather(*map(publish, range(len(waiting))))
        return len(waiting) / (time.perf_counter() - started)


async def _relayed(url: str, database: Database, topology: Topology) -> float:
    """Publish all stored requests with the relay."""
    publisher = RabbitMQ(url, public_url=PUBLIC_URL, topology=topology)
    await publisher.open()
    complete = signer(database).publishable
    relay = Relay(Outbox(database), publisher, Notifier().subscribe(), complete=complete)
    started = time.perf_counter()
    running = asyncio.create_task(relay.run())
    # Polled from outside, so that the measured code stays unchanged.
    look = partial(executions.pending, limit=1, without=())
    while await database.read(look):  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.005)
    took = time.perf_counter() - started
    running.cancel()
    await asyncio.wait({running})
    return MESSAGES / took


def signer(database: Database) -> PackageSigner:
    """Return a signer of the service's own URLs: nothing is read from its storage."""
    valid = timedelta(days=7)
    return PackageSigner(
        database=database,
        storage=PackageStorage(Path(tempfile.gettempdir()).as_uri()),
        signed_tokens=SignedTokens(b"k" * 32, valid=valid),
        base_url=PUBLIC_URL,
        valid=valid,
        keep=timedelta(days=90),
    )


def _stages(folder: Path, broker: Broker) -> list[Row]:
    """Push repeatedly to a known repository; return the time of each stage, in ms."""
    taken: dict[str, list[float]] = {"accept": [], "fetch": [], "plan": [], "publish": [], "in all": []}
    with (
        GitHost(folder / "git") as host,
        Command(folder / "data", AMQP_URL=broker.url) as service,
    ):
        project = Project(host, folder)
        connection = service.connect(project.url, "train@main")
        before = project.first
        for number in range(_PUSHES + 1):
            after = project.push(f"Number {number}", {"train.py": f"print({number})\n"})
            started = time.time()
            _, answer = service.deliver(connection, project.payload(before, after))
            taken["accept"].append((time.time() - started) * 1000)
            service.settled(answer["delivery"])
            one = _published(service, answer["delivery"])
            published = datetime.fromisoformat(one["published_at"]).timestamp()
            planned = datetime.fromisoformat(one["planned_at"]).timestamp()
            taken["publish"].append((published - planned) * 1000)
            taken["in all"].append((published - started) * 1000)
            before = after
        for line in service.log():
            if line["event"] == "push settled":
                taken["fetch"].append(line["fetch_ms"])
                taken["plan"].append(line["plan_ms"])
    rows = []
    for stage, times in taken.items():
        warm = sorted(times[1:])
        p50, p99 = warm[len(warm) // 2], warm[min(len(warm) - 1, len(warm) * 99 // 100)]
        rows.append(Row(f"push to message, {stage}: p99 in ms, beside p50", p99, max(p50, 0.1), None, False))
    return rows


def _published(service: Command, delivery: str) -> Any:
    while True:
        [one] = service.api.get("/executions", delivery=delivery)["items"]
        if one["published_at"] is not None:
            return one
        time.sleep(0.002)
