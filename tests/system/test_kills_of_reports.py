"""SIGKILL at random moments during a storm of reports: every execution ends as its runner has reported last.

`make soak` does three hundred rounds; `make test` a few.
"""

import asyncio
import json
import os
import random
import threading
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aio_pika
from aio_pika.abc import AbstractExchange
from sqlalchemy import select

from gateway.cli.api_client import ApiError
from gateway.messages.execution_states import FINAL
from gateway.publish.topology import Topology
from gateway.store import accept, connections, executions
from gateway.store.database import Database
from gateway.store.execution_tables import executions as table
from gateway.store.run_tables import runs
from testing import records
from testing.broker import Broker
from testing.records import NOW, A, arrival, move
from testing.service import Service, wait_for
from tests.publish.runner import Runner, remove

ROUNDS = int(os.environ.get("SOAK_ROUNDS", "2"))
EXECUTIONS = 40
REPORTS = 100
RANKS: Mapping[str, int] = {"accepted": 1, "running": 2, **dict.fromkeys(FINAL, 3)}


@dataclass
class Run:
    """A run of a request, as its runner knows it: what it has reported, and what is the last of that."""

    id: str
    by_http: bool
    sent: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, number: int, name: int) -> Self:
        """Return the run of an execution of a round; one of eight reports over HTTP."""
        return cls(f"{number}-{name}", by_http=name % 8 == 0)

    def next(self, dice: random.Random) -> dict[str, Any]:
        """Return a new report, or a repetition of an earlier one."""
        if self.sent and (self.sent[-1]["state"] in FINAL or dice.random() < 0.3):
            return dice.choice(self.sent)
        states = ["accepted"] if not self.sent else ["running", "running", *sorted(FINAL)]
        sequence = len(self.sent) + 1
        report = {
            "id": self.id,
            "state": dice.choice(states),
            "at": f"{NOW.isoformat()}",
            "sequence": sequence,
        }
        self.sent.append({**report, "summary": f"report {sequence}"})
        return self.sent[-1]

    @property
    def last(self) -> tuple[str, int]:
        """The last report."""
        return self.sent[-1]["state"], self.sent[-1]["sequence"]


def test_killed_again_and_again_every_run_is_as_its_runner_reported_it_last(
    tmp_path: Path, broker: Broker
) -> None:
    """Some report to the broker, which outlives the gateway, others over HTTP until they have an answer."""
    seed = int(os.environ.get("SOAK_SEED", uuid.uuid4().int % 10**6))
    print(f"seed {seed}, {ROUNDS} rounds")  # noqa: T201 - pytest shows it where the test fails
    dice = random.Random(seed)  # noqa: S311 - to be had again, not to be secret
    name = f"kills-{uuid.uuid4().hex}"
    service = Service(tmp_path / "data", AMQP_URL=broker.url, AMQP_EXCHANGE=name, AMQP_QUEUE=name)
    topology = Topology(exchange=name, queue=name)
    with service:
        pass
    seen: dict[str, tuple[str, int, int]] = {}
    everything: list[Run] = []
    for number in range(ROUNDS):
        mine = [Run.of(number, execution) for execution in range(EXECUTIONS)]
        published(tmp_path, mine)
        everything += mine
        # Those of earlier rounds are reported about as well.
        active = mine + dice.sample(everything, min(len(everything), EXECUTIONS // 2))
        service.start()
        killing = threading.Timer(dice.uniform(0.01, 0.5), service.kill)
        killing.start()
        asyncio.run(storm(service, broker, topology, active, dice))
        killing.join()
        seen = never_backwards(tmp_path, seen)
    with service:
        for run in everything:
            if run.by_http and run.sent:
                service.api.send("POST", f"/executions/{run.id}/status", run.sent[-1])
        last = {run.id: run.last for run in everything if run.sent}
        wait_for(lambda: last == reported(tmp_path), "everything is recorded", seconds=60 + ROUNDS)
    never_backwards(tmp_path, seen)
    asyncio.run(nothing_is_left(broker, topology))


def published(folder: Path, mine: list[Run]) -> None:
    """Store published requests for these runs."""
    with closing(store(folder)) as database, database.writing() as conn:
        if mine[0].id == "0-0":
            connections.add(conn, records.made())
            accept.record(conn, [arrival(move(None, A), id="d1")])
        ids = [run.id for run in mine]
        requests = [records.request(run, trigger=run) for run in ids]
        executions.add(conn, requests, ref_update=1, now=NOW)
        executions.record(conn, published=ids, refused={}, undeliverable={}, now=NOW)


async def storm(
    service: Service, broker: Broker, topology: Topology, active: list[Run], dice: random.Random
) -> None:
    """Report in random order, with repetitions, each report confirmed by the broker or sent over HTTP."""
    async with Runner(broker.url) as runner:
        await topology.establish_reports(runner.connection)
        exchange = await runner.channel.get_exchange(topology.exchange)
        reports = []
        for _ in range(REPORTS):
            run = dice.choice(active)
            reports.append((run, run.next(dice)))
        # The broker keeps no order between runs, and a network none between retries.
        dice.shuffle(reports)
        await asyncio.gather(*(send(service, exchange, run, report) for run, report in reports))


async def send(service: Service, exchange: AbstractExchange, run: Run, report: Mapping[str, Any]) -> None:
    """Send a report; over HTTP it may fail, and the last one is sent again in the end."""
    if run.by_http:
        try:
            await asyncio.to_thread(service.api.send, "POST", f"/executions/{run.id}/status", dict(report))
        except (ApiError, AssertionError, OSError):
            return
    else:
        mode = aio_pika.DeliveryMode.PERSISTENT
        await exchange.publish(
            aio_pika.Message(json.dumps(report).encode(), delivery_mode=mode), "execution.status.digits"
        )


def store(folder: Path) -> Database:
    """Return the database of the gateway."""
    return Database(f"sqlite:///{folder / 'data' / 'pushgate.db'}")


def snapshot(folder: Path) -> dict[str, tuple[str, int, int]]:
    """Return state, sequence and revision of every run."""
    with closing(store(folder)) as database, database.reading() as conn:
        query = select(table.c.id, runs.c.state, runs.c.sequence, runs.c.revision)
        rows = conn.execute(query.join_from(runs, table, table.c.seq == runs.c.execution))
        return {row.id: (row.state, row.sequence, row.revision) for row in rows}


def reported(folder: Path) -> dict[str, tuple[str, int]]:
    """Return state and sequence of every run."""
    return {name: (state, sequence) for name, (state, sequence, _) in snapshot(folder).items()}


def never_backwards(
    folder: Path, before: Mapping[str, tuple[str, int, int]]
) -> dict[str, tuple[str, int, int]]:
    """Compare every run with what it was before; return what it is now."""
    now = snapshot(folder)
    for name, (state, sequence, revision) in before.items():
        assert name in now, f"{name} is gone"
        after = now[name]
        assert RANKS[after[0]] >= RANKS[state], f"{name} went from {state} to {after[0]}"
        assert after[1] >= sequence
        assert after[2] >= revision
        # A change has a number of its own, so that those who follow the revisions see it.
        assert (after == (state, sequence, revision)) == (after[2] == revision)
        assert state not in FINAL or after[:2] == (state, sequence)
    return now


async def nothing_is_left(broker: Broker, topology: Topology) -> None:
    """Check that no report waits, or was given up; then remove the queues."""
    async with Runner(broker.url) as runner:
        assert await runner.count(topology.report_queue) == 0
        assert await runner.count(topology.dead_queue) == 0
        await runner.channel.queue_delete(topology.report_queue)
    await remove(broker, topology)
