"""Publishing lanes on PostgreSQL: one process with one lane, and four with four, beside a bare aio-pika loop.

Every process relays all lanes, as workers do, and leads its share. CPU says what saturates first: that of
RabbitMQ, that of the relays, and how many cores were busy, PostgreSQL and the bench included.
"""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import psycopg
import structlog
import uvloop
from sqlalchemy import update

from bench.relay import MESSAGES, NAMES, PUBLIC_URL, bare, filled, run_as_served, signer
from bench.report import Progress, Rounds, Row
from gateway.publish.rabbitmq import RabbitMQ
from gateway.publish.relay import Relay
from gateway.publish.topology import Topology
from gateway.server.server import prepare_interpreter
from gateway.store.database import Database
from gateway.store.execution_tables import executions
from gateway.store.leading import TAKE_OVER_SECONDS
from gateway.store.notify import Notifier
from gateway.store.outbox import outboxes
from testing.broker import Broker
from testing.postgres import Postgres, url_of

_LANES = 4
_ROUNDS = 3
_SECONDS = 45
_TICKS = os.sysconf("SC_CLK_TCK")
_TOPOLOGY = Topology(exchange="lanes", queue="lanes")
_LEADING = "SELECT count(*) = %s FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'"


@dataclass(frozen=True, slots=True)
class _Result:
    """Messages a second; µs of CPU for each in the publishers and in RabbitMQ; cores that were busy."""

    rate: float
    publishers: float
    broker: float
    cores: float


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    rounds = Rounds("lanes", progress, most=_ROUNDS, seconds=_SECONDS)
    with (
        Broker() as broker,
        Postgres(durable=True) as postgres,
        closing(filled(postgres.database(), NAMES, with_packages=True)) as database,
    ):
        for _ in rounds:
            rounds.measure("bare", _measure_bare, broker, database)
            for lanes in (1, _LANES):
                rounds.measure(f"{lanes}", _measure_relays, broker, database, lanes=lanes)
    return [*_rows(rounds, 1, aim=None), *_rows(rounds, _LANES, aim=1.6)]


def _rows(rounds: Rounds, lanes: int, *, aim: float | None) -> list[Row]:
    what, name = f"{lanes}", f"relay, {lanes} lanes in {lanes} processes" if lanes > 1 else "relay, 1 lane"
    costs = {
        "µs of CPU a message in the relays": attrgetter("publishers"),
        "µs of CPU a message in RabbitMQ": attrgetter("broker"),
        f"busy cores of {os.cpu_count()}": attrgetter("cores"),
    }
    rate = attrgetter("rate")
    return [
        rounds.row(
            f"{name}, PostgreSQL: messages a second", what, "bare", aim=aim, higher_is_better=True, of=rate
        ),
        *(
            rounds.row(f"{name}: {cost}", what, "bare", aim=None, higher_is_better=False, of=of)
            for cost, of in costs.items()
        ),
    ]


def _measure_bare(broker: Broker, database: Database) -> _Result:
    _make_pending(database)
    before, cpu = _used(broker), time.process_time()
    rate = run_as_served(bare(broker.url, database, _TOPOLOGY))
    return _result(MESSAGES / rate, before, _used(broker), publishers=time.process_time() - cpu)


def _measure_relays(broker: Broker, database: Database, *, lanes: int) -> _Result:
    """Measure as many processes as lanes, from the commit of the requests until all are published."""
    command = [sys.executable, "-m", "bench.lanes", url_of(database), broker.url, str(lanes)]
    with ExitStack() as stack:
        _publish_none(database)
        processes = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in range(lanes)
        ]
        _wait_until(database, _LEADING, lanes)
        time.sleep(TAKE_OVER_SECONDS)
        before, started = _used(broker), time.perf_counter()
        _make_pending(database)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        _wait_until(database, "SELECT NOT EXISTS (SELECT FROM executions WHERE state = 'pending')")
        took, after = time.perf_counter() - started, _used(broker)
        outputs = [process.communicate()[0] for process in processes]
    return _result(took, before, after, publishers=sum(map(float, outputs)))


def _result(
    took: float, before: tuple[float, float], after: tuple[float, float], *, publishers: float
) -> _Result:
    busy, broker = (new - old for old, new in zip(before, after, strict=True))
    each = 1e6 / MESSAGES
    return _Result(MESSAGES / took, publishers * each, broker * each, busy / took)


def _used(broker: Broker) -> tuple[float, float]:
    """Return the seconds of CPU that the machine and RabbitMQ have used."""
    user, nice, system, *_ = Path("/proc/stat").read_text(encoding="ascii").split()[1:]
    pid = (broker.folder / "pid").read_text(encoding="ascii").strip()
    mine = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    return sum(map(int, (user, nice, system))) / _TICKS, sum(map(int, mine)) / _TICKS


def _make_pending(database: Database) -> None:
    _set_all(database, "pending")


def _publish_none(database: Database) -> None:
    _set_all(database, "published")


def _set_all(database: Database, state: str) -> None:
    with database.writing() as conn:
        conn.execute(update(executions).values(state=state))


def _wait_until(database: Database, query: str, *values: int) -> None:
    """Return once a query is true; locks and confirms send no notification."""
    with psycopg.connect(url_of(database), autocommit=True) as conn:
        while not conn.execute(query, values).fetchall()[0][0]:
            time.sleep(0.005)


async def _relay(url: str, broker: str, lanes: int) -> None:
    """Relay, as a worker process does, until the input ends; look at once after each of its lines."""
    with closing(Database(url)) as database:
        notifier, complete = Notifier(), signer(database).publishable
        running = [
            asyncio.create_task(
                Relay(
                    outbox,
                    RabbitMQ(broker, public_url=PUBLIC_URL, topology=_TOPOLOGY),
                    notifier.subscribe(),
                    complete=complete,
                ).run()
            )
            for outbox in outboxes(database, lanes=lanes)
        ]
        cpu = 0.0
        while await asyncio.to_thread(sys.stdin.readline):
            cpu = time.process_time()
            notifier.notify()
        cpu = time.process_time() - cpu
        for task in running:
            task.cancel()
        await asyncio.wait(running)
    print(cpu)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    prepare_interpreter()
    uvloop.run(_relay(sys.argv[1], sys.argv[2], int(sys.argv[3])))
