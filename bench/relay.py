"""The hand-off: stored requests to a quorum queue with confirms, beside a bare aio-pika loop.

Both have the same window, the same messages, and a queue of the same kind, in turn in one run. Then the way
of a push, from the webhook to the message, by stage, on a mirror that is warm.
"""

import asyncio
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import sqlalchemy
import structlog

from bench.report import Progress, Rounds, Row, measured
from gateway.publish.cloudevents import message, routing_key
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.relay import Relay
from gateway.publish.topology import Topology
from gateway.store import accept, connections, executions, work_queue
from gateway.store.database import Database
from gateway.store.executions import NewRequest
from gateway.store.notify import Notifier
from gateway.store.outbox import Outbox
from testing import records
from testing.broker import Broker
from testing.git_host import GitHost
from testing.service import Command, Project

_CONNECTIONS = 64
_EACH = 128
_WINDOW = 64
_ROUNDS = 9
_SECONDS = 60
_BODY = b'{"padding": "' + b"x" * 2000 + b'"}'
_PUSHES = 40
_PUBLIC_URL = "https://push.example"


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    # Log lines for each batch do not belong in the table.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with Broker() as broker, tempfile.TemporaryDirectory(prefix="pushgate-bench-") as path:
        rounds = Rounds("relay", progress, most=_ROUNDS, seconds=_SECONDS)
        for number in rounds:
            database = _filled(Path(path) / f"relay-{number}.db")
            topology = Topology(exchange=f"bench-{number}", queue=f"bench-{number}")
            rounds.measure("bare", lambda: asyncio.run(_bare(broker.url, database, topology)))  # noqa: B023
            rounds.measure("relay", lambda: asyncio.run(_relayed(broker.url, database, topology)))  # noqa: B023
            database.close()
        name = "relay: confirmed messages per second"
        rate = rounds.row(name, "relay", "bare", aim=0.95, higher_is_better=True)
        progress("relay: from the webhook to the message")
        return [rate, *measured("push to message", _stages, Path(path), broker)]


def _filled(path: Path) -> Database:
    """Return a store with many pending requests of many connections, in turn."""
    database, now = Database(f"sqlite:///{path}"), datetime.now(UTC)
    database.migrate()
    names = [f"c{number:03}" for number in range(_CONNECTIONS)]
    with database.writing() as conn:
        updates = {name: _pushed(conn, name) for name in names}
        for number in range(_EACH):
            for name in names:
                executions.add(conn, [_request(name, number)], ref_update=updates[name], now=now)
    return database


def _pushed(conn: sqlalchemy.Connection, connection: str) -> int:
    """Store a connection and a push of it; return the number of its ref update."""
    connections.add(conn, records.made(connection))
    push = records.arrival(records.move(None, records.A), id=f"d-{connection}", connection=connection)
    accept.record(conn, [push])
    return work_queue.pending(conn, connection, limit=1)[0].seq


def _request(connection: str, number: int) -> NewRequest:
    name = f"{connection}-{number}"
    return records.request(
        name, connection=connection, delivery=f"d-{connection}", trigger=f"t{number}", body=_BODY
    )


async def _bare(url: str, database: Database, topology: Topology) -> float:
    """Publish the stored requests, read beforehand, with the bare library."""
    with database.reading() as conn:
        waiting = executions.pending(conn, limit=_CONNECTIONS * _EACH, without=(), most_bytes=10**9)
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await topology.establish(connection)
        exchange = await channel.get_exchange(topology.exchange)
        window = asyncio.Semaphore(_WINDOW)

        async def publish(number: int) -> None:
            async with window:
                one = waiting[number]
                content = message(one, public_url=_PUBLIC_URL)
                await exchange.publish(content, routing_key(one), mandatory=True, timeout=30)

        started = time.perf_counter()
        await asyncio.gather(*map(publish, range(len(waiting))))
        return len(waiting) / (time.perf_counter() - started)


async def _relayed(url: str, database: Database, topology: Topology) -> float:
    """Publish all stored requests with the relay."""
    publisher = RabbitMQ(url, public_url=_PUBLIC_URL, topology=topology)
    await publisher.open()
    relay = Relay(Outbox(database), publisher, Notifier().subscribe())
    started = time.perf_counter()
    running = asyncio.create_task(relay.run())
    # Polled from outside, so that the measured code stays unchanged.
    look = partial(executions.pending, limit=1, without=())
    while await database.read(look):  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.005)
    took = time.perf_counter() - started
    running.cancel()
    await asyncio.wait({running})
    return _CONNECTIONS * _EACH / took


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
