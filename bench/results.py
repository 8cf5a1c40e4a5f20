"""What runners report: how many reports per second become durable, from the broker and over HTTP.

Each execution is accepted, runs and succeeds: three reports, those of all executions mixed. From the broker,
the worker's own consumer empties a full queue. Over HTTP, 64 connections report to the signed URLs of a web
process, the real command, each as soon as it has its last answer. SQLite syncs as in the service; PostgreSQL
runs on the same machine, and syncs each commit. The client has one of two cores.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import sqlalchemy
import structlog
import uvloop
from sqlalchemy import func, select

from bench.relay import filled
from bench.report import Progress, Rounds, Row
from bench.webhook import load
from gateway.crypto.keyring import Keyring
from gateway.crypto.signed_tokens import SignedTokens
from gateway.publish.brokers import Brokers, Tls
from gateway.publish.reports import Hearing, ReportConsumer
from gateway.publish.status_urls import VALID_FOR, subject
from gateway.publish.topology import Topology
from gateway.store.database import Database
from gateway.store.run_tables import runs
from testing.broker import Broker
from testing.postgres import Postgres
from testing.service import Command

_AIM = 2000.0
_CLIENTS = 64
_ROUNDS = 3
_SECONDS = 150
_NAMES = [f"{number:x}{number:03}" for number in range(16)]
_EACH = 128
_EXECUTIONS = len(_NAMES) * _EACH
_STATES = ("accepted", "running", "succeeded")
_KEY = "k" * 32
_AT = "2026-11-30T12:00:00Z"


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with ExitStack() as stack:
        broker = stack.enter_context(Broker())
        postgres = cache(lambda: stack.enter_context(Postgres(durable=True)))
        rounds = Rounds("results", progress, most=_ROUNDS, seconds=_SECONDS)
        for number in rounds:
            for store in ("SQLite", "PostgreSQL"):
                url = None if store == "SQLite" else postgres().database
                with _executions(url) as (database, folder):
                    rounds.measure(f"queue, {store}", _from_queue, database, broker, f"{store}-{number}")
                with _executions(url) as (database, folder):
                    rounds.measure(f"HTTP, {store}", _over_http, database, folder)
            rounds.measure("aim", lambda: _AIM)
    return [
        rounds.row(f"results: durable per second, {what}", what, "aim", aim=1.0, higher_is_better=True)
        for what in ("queue, SQLite", "queue, PostgreSQL", "HTTP, SQLite", "HTTP, PostgreSQL")
    ]


@contextmanager
def _executions(make: Callable[[], str] | None) -> Iterator[tuple[Database, Path]]:
    """Return a store with the executions, and the data folder for a service that uses it."""
    with tempfile.TemporaryDirectory(prefix="pushgate-bench-") as folder:
        url = make() if make is not None else f"sqlite:///{folder}/pushgate.db"
        with closing(filled(url, _NAMES, with_packages=False)) as database:
            yield database, Path(folder)


def _bodies() -> Iterator[tuple[str, bytes]]:
    """Yield the reports about all executions, with their ids."""
    for sequence, state in enumerate(_STATES):
        for number in range(_EACH):
            for name in _NAMES:
                execution = f"{name}-{number}"
                report = {
                    "id": execution,
                    "state": state,
                    "at": _AT,
                    "sequence": sequence,
                    "url": f"https://ml.example/runs/{execution}",
                    "summary": "epoch 7 of 10, accuracy 0.93",
                    "metrics": {"accuracy": 0.93, "loss": 0.21},
                    "runner": "bench (runner 1.0)",
                }
                yield execution, json.dumps(report).encode()


def _from_queue(database: Database, broker: Broker, name: str) -> float:
    return uvloop.run(_consumed(database, broker, Topology(exchange=name, queue=name)))


async def _consumed(database: Database, broker: Broker, topology: Topology) -> float:
    """Publish all reports, then take them from the queue; return how many per second."""
    connection = await aio_pika.connect(broker.url)
    async with connection:
        await topology.establish_reports(connection)
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(topology.exchange)
        bodies = [body for _, body in _bodies()]
        for start in range(0, len(bodies), _CLIENTS):
            messages = (
                aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
                for body in bodies[start : start + _CLIENTS]
            )
            sending = (exchange.publish(message, "execution.status.bench") for message in messages)
            await asyncio.gather(*sending)
    consumer = ReportConsumer(
        database=database,
        brokers=Brokers(broker.url, Tls()),
        topology=topology,
        hearing=Hearing(),
        notify=lambda: None,
    )
    started = time.perf_counter()
    running = asyncio.create_task(consumer.run())
    # Polled from outside, so that the measured code stays unchanged.
    while await database.read(_ended) < _EXECUTIONS:  # noqa: ASYNC110 - see above
        await asyncio.sleep(0.02)
    took = time.perf_counter() - started
    running.cancel()
    await asyncio.wait({running})
    return len(bodies) / took


def _over_http(database: Database, folder: Path) -> float:
    settings = {"SECRET_KEY": _KEY, "ROLE": "web"}
    if not database.is_embedded:
        settings["DATABASE_URL"] = database.url.render_as_string(hide_password=False)
    requests = _requests()
    with Command(folder, **settings) as service:
        port = urlsplit(service.url).port or 0
        found = uvloop.run(load(port, requests, _CLIENTS))
    with database.reading() as conn:
        ended = _ended(conn)
    if ended != _EXECUTIONS:
        raise RuntimeError(f"only {ended} of {_EXECUTIONS} executions have ended")
    return found.rate


def _requests() -> Sequence[bytes]:
    """Return the reports as requests to the signed URLs."""
    tokens = SignedTokens(Keyring(_KEY).status_url_key(), valid=VALID_FOR)
    requests = []
    for execution, body in _bodies():
        token = tokens.issue(subject(execution), now=datetime.now(UTC))
        path = f"/api/v1/executions/{execution}/status?expires={token.expires}&signature={token.signature}"
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        requests.append(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return requests


def _ended(conn: sqlalchemy.Connection) -> int:
    ended = select(func.count()).select_from(runs).where(runs.c.state == "succeeded")
    return conn.execute(ended).scalar_one()
