"""The runners' reports reach the store from a real broker."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from gateway.publish.brokers import Brokers, Tls
from gateway.publish.reports import Hearing, ReportConsumer
from gateway.publish.topology import Topology
from gateway.store import accept, executions, runs
from gateway.store.database import Database
from testing import records
from testing.broker import Broker
from testing.records import NOW, A, arrival, move
from testing.service import WAIT_SECONDS
from tests.publish.proxy import Proxy
from tests.publish.runner import Runner

IDS = ("r1", "r2", "r3")


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    """Return a database with three execution requests."""
    database = Database(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    records.connection(database)
    with database.writing() as conn:
        accept.record(conn, [arrival(move(None, A), id="d1")])
        executions.add(conn, [records.request(name) for name in IDS], ref_update=1, now=NOW)
    yield database
    database.close()


class Received:
    """A broker whose reports a consumer stores."""

    def __init__(self, database: Database, runner: Runner, topology: Topology) -> None:
        self._database, self._runner, self._topology = database, runner, topology
        self.changed = asyncio.Event()
        self.hearing = Hearing()

    async def report(self, name: str, state: str, sequence: int, **properties: Any) -> None:
        """Report as a runner does."""
        body = {"id": name, "state": state, "at": "2026-11-30T12:00:00Z", "sequence": sequence}
        await self.send(json.dumps(body).encode(), **properties)

    async def send(self, body: bytes, **properties: Any) -> None:
        """Publish a message with the routing key of a report."""
        exchange = await self._runner.channel.get_exchange(self._topology.exchange)
        await exchange.publish(aio_pika.Message(body, **properties), "execution.status.digits")

    async def until(self, expected: dict[str, str]) -> None:
        """Wait until the runs have these states."""
        async with asyncio.timeout(WAIT_SECONDS):
            while self.states() != expected:
                self.changed.clear()
                await self.changed.wait()

    def states(self) -> dict[str, str]:
        """Return the states of the runs."""
        with self._database.reading() as conn:
            found = runs.of(conn, range(1, len(IDS) + 1))
        return {IDS[number - 1]: run.state for number, run in found.items()}


@asynccontextmanager
async def received(
    database: Database, broker: Broker, topology: Topology, *, through: str | None = None
) -> AsyncIterator[Received]:
    """Run a consumer, with the broker's own URL by default, and wait until its queue is there."""
    async with Runner(broker.url) as runner:
        receiving = Received(database, runner, topology)
        consumer = ReportConsumer(
            database=database,
            brokers=Brokers(through or broker.url, Tls()),
            topology=topology,
            hearing=receiving.hearing,
            notify=receiving.changed.set,
        )
        await topology.establish_reports(runner.connection)
        running = asyncio.create_task(consumer.run())
        try:
            yield receiving
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await runner.channel.queue_delete(topology.report_queue)


def run(database: Database, broker: Broker, topology: Topology, work: Callable[[Received], Any]) -> None:
    """Run a test's coroutine with a consumer."""

    async def running() -> None:
        async with received(database, broker, topology) as receiving:
            await work(receiving)

    asyncio.run(running())


def test_reports_are_stored_in_any_order_and_repeated(
    database: Database, broker: Broker, topology: Topology
) -> None:
    """Also as CloudEvents in structured mode; the highest sequence counts, and a final state stays."""

    async def work(receiving: Received) -> None:
        for name, state, sequence in (("r1", "succeeded", 3), ("r1", "running", 2), ("r2", "accepted", 1)):
            for _ in range(2):
                await receiving.report(name, state, sequence)
        data = {"id": "r3", "state": "failed", "at": "2026-11-30T12:00:00Z", "sequence": 9}
        event = {"specversion": "1.0", "type": "dev.pushgate.execution.status.v1", "data": data}
        content_type = "application/cloudevents+json; charset=utf-8"
        await receiving.send(json.dumps(event).encode(), content_type=content_type)
        await receiving.until({"r1": "succeeded", "r2": "accepted", "r3": "failed"})

    run(database, broker, topology, work)


def test_what_cannot_be_read_is_a_dead_letter_and_holds_nothing_up(
    database: Database, broker: Broker, topology: Topology
) -> None:
    """A report about an unknown execution is none: its id is kept with the reason."""

    async def work(receiving: Received) -> None:
        await receiving.send(b"no JSON")
        await receiving.report("unknown", "running", 1)
        await receiving.report("r1", "running", 1)
        await receiving.send(b"{}")
        await receiving.until({"r1": "running"})
        async with Runner(broker.url) as runner:
            dead = await runner.take(topology.dead_queue, 2)
            assert [message.body for message in dead] == [b"no JSON", b"{}"]
            assert await runner.rest(topology.report_queue) == []

    run(database, broker, topology, work)
    with database.reading() as conn:
        [kept] = runs.unknown(conn, ["unknown"])
    assert kept.count == 1


def test_a_lost_connection_loses_no_report(database: Database, broker: Broker, topology: Topology) -> None:
    """Reports wait at the broker, and the consumer connects again."""

    async def running() -> None:
        async with (
            Proxy(broker.url) as proxy,
            received(database, broker, topology, through=proxy.url) as receiving,
        ):
            await receiving.report("r1", "running", 1)
            await receiving.until({"r1": "running"})
            proxy.hold_answers()
            await receiving.report("r1", "succeeded", 2)
            await proxy.cut()
            await receiving.report("r2", "accepted", 1)
            proxy.heal()
            await receiving.until({"r1": "succeeded", "r2": "accepted"})

    asyncio.run(running())
