"""The webhook endpoint: verified, durable accepts of an 8 KB push, against a bare Starlette route.

The bare route only reads the body. The benchmark measures SQLite; the endpoint with nothing stored, the
upper limit for any store; PostgreSQL against SQLite; and, with the real command, two processes on
PostgreSQL against one, if the kernel can give each the same share of a core. The same client loads all of
them in turn with the same requests, each a different push, signed beforehand. If the machine has two
cores, server and client have one each. PostgreSQL runs on the same machine, and syncs each commit.
"""

import asyncio
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import cast

import uvloop

from bench import servers, shares
from bench.report import Progress, Rounds, Row, unmeasured
from gateway.crypto.keyring import Keyring
from gateway.store.database import Database
from providers import github
from testing.github import push_payload
from testing.postgres import Postgres
from testing.service import Command, wait_for

_CLIENTS = 64
# Enough that two processes have full batches as well.
_MANY_CLIENTS = 256
# The share of each web process, so that two have as much as one, with PostgreSQL and the client on two cores.
_SHARE = 0.25
_REQUESTS = 8_000
_ROUNDS = 5
_SECONDS = 120
# Fewer for processes that have only a share of a core.
_WORKERS_REQUESTS = 3_000
_MOST_SECONDS = 60
_BODY = 8 * 1024
# Text that compresses about as well as commit messages.
_WORDS = ("the", "model", "learns", "faster", "with", "fewer", "epochs", "and", "a", "larger", "batch", "fix")
_MESSAGES = [" ".join(random.choices(_WORDS, k=580)) for _ in range(64)]


@dataclass(frozen=True, slots=True)
class _Load:
    """What a round measured: requests per second, and the latency of each in ms."""

    rate: float
    latencies: list[float]

    def percentile(self, percent: int) -> float:
        """Return a latency that so many percent of the requests do not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def run(progress: Progress) -> list[Row]:
    """Measure, and return the rows of the table."""
    rounds = Rounds("webhook", progress, most=_ROUNDS, seconds=_SECONDS)
    with ExitStack() as stack:
        postgres = cache(lambda: stack.enter_context(Postgres(durable=True)))
        for _ in rounds:
            requests = [_request() for _ in range(_REQUESTS)]
            rounds.measure("bare", _round, "bare", requests)
            for name, kind in (("SQLite", "webhook"), ("unstored", "unstored")):
                with tempfile.TemporaryDirectory(prefix="pushgate-bench-") as folder:
                    rounds.measure(name, _round, kind, requests, f"sqlite:///{folder}/bench.db")
            rounds.measure("PostgreSQL", _postgres_round, requests, postgres)
            for workers in (1, 2) if shares.is_possible() else ():
                few = requests[:_WORKERS_REQUESTS]
                rounds.measure(f"{workers} workers", _workers_round, workers, few, postgres)
    return _rows(rounds)


def _rows(rounds: Rounds) -> list[Row]:
    rate = attrgetter("rate")
    name = "webhook: durable accepts per second"
    rows = [rounds.row(name, "SQLite", "bare", aim=0.4, higher_is_better=True, of=rate)]
    name = "webhook: the limit for any store, per second: verified and parsed, nothing stored"
    rows.append(rounds.row(name, "unstored", "bare", aim=None, higher_is_better=True, of=rate))
    for percent in (50, 99):
        name, of = f"webhook: p{percent} in ms", methodcaller("percentile", percent)
        rows.append(rounds.row(name, "SQLite", "bare", aim=None, higher_is_better=False, of=of))
    name = "webhook on PostgreSQL: durable accepts per second, against SQLite"
    rows.append(rounds.row(name, "PostgreSQL", "SQLite", aim=0.7, higher_is_better=True, of=rate))
    name = f"two web processes on PostgreSQL, against one, each limited to {_SHARE:g} of a core"
    if not shares.is_possible():
        return [*rows, unmeasured(name, "the kernel lets this user limit no process's CPU", aim=1.6)]
    return [*rows, rounds.row(name, "2 workers", "1 workers", aim=1.6, higher_is_better=True, of=rate)]


def _round(kind: str, requests: Sequence[bytes], *database: str) -> _Load:
    with _server(kind, *database) as port:
        uvloop.run(_load(port, requests[:200], _CLIENTS))
        return uvloop.run(_load(port, requests[200:], _CLIENTS))


def _postgres_round(requests: Sequence[bytes], postgres: Callable[[], Postgres]) -> _Load:
    return _round("webhook", requests, postgres().database())


def _workers_round(workers: int, requests: Sequence[bytes], postgres: Callable[[], Postgres]) -> _Load:
    """Load `pushgate serve --role web` with `workers` processes, each with its share of a core."""
    url = postgres().database()
    database = Database(url)
    servers.prepare(database, Keyring(servers.KEY))
    database.close()
    settings = {"DATABASE_URL": url, "SECRET_KEY": servers.KEY, "ROLE": "web", "WORKERS": str(workers)}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pushgate-bench-"))
        groups = [stack.enter_context(shares.share_of_a_core(_SHARE)) for _ in range(workers)]
        service = stack.enter_context(Command(Path(folder) / "data", **settings))
        pids = wait_for(lambda: _listening(service, workers), "all processes listen")
        for group, pid in zip(groups, pids, strict=True):
            group.add(pid)
        port = int(service.url.rpartition(":")[2])
        uvloop.run(_load(port, requests[:200], _MANY_CLIENTS))
        return uvloop.run(_load(port, requests[200:], _MANY_CLIENTS))


def _listening(service: Command, workers: int) -> list[int] | None:
    """Return the ids of the web processes once all of them listen."""
    pids = [line["pid"] for line in service.log() if line["event"] == "listening"]
    return pids if len(pids) == workers else None


async def _load(port: int, requests: Sequence[bytes], clients: int) -> _Load:
    waiting = iter(requests)
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    ends = [
        (await loop.create_connection(lambda: _Client(waiting, latencies), "127.0.0.1", port))[1].done
        for _ in range(clients)
    ]
    async with asyncio.timeout(_MOST_SECONDS):
        await asyncio.gather(*ends)
    return _Load(len(requests) / (time.perf_counter() - started), latencies)


class _Client(asyncio.Protocol):
    """One connection: sends the next request after the answer to the previous one."""

    def __init__(self, waiting: Iterator[bytes], latencies: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = waiting
        self._latencies = latencies
        self._sent_at = 0.0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's has its methods, not its type
        self._next()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if b"\r\n\r\n" not in self._answer or not self._answer.endswith(b"}"):
            return  # an answer is a head and one JSON object, which may come in pieces
        answer, self._answer = self._answer, b""
        self._latencies.append((time.perf_counter() - self._sent_at) * 1000)
        if not answer.startswith(b"HTTP/1.1 202"):
            self.done.set_exception(RuntimeError(answer.decode()))
        else:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or RuntimeError("the server closed the connection"))

    def _next(self) -> None:
        request = next(self._waiting, None)
        if request is None:
            self.done.set_result(None)
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)


@contextmanager
def _server(kind: str, *database: str) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-m", "bench.servers", kind, str(port), *database])
    try:
        if len(cores) > 1:
            # The client stays on one core, so that the server has the other to itself.
            os.sched_setaffinity(0, cores[1:])
        _wait_until_it_listens(port)
        yield port
    finally:
        process.terminate()
        process.wait()
        os.sched_setaffinity(0, cores)


def _wait_until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("the server did not start")


def _request() -> bytes:
    """Return a request of about 8 KB: a new push to one of 256 branches."""
    after = uuid.uuid4().hex + uuid.uuid4().hex[:8]
    body = push_payload(
        url=servers.URL,
        full_name="acme/digits",
        ref=f"refs/heads/branch-{after[:2]}",
        before=uuid.uuid4().hex + "0" * 8,
        after=after,
        message=random.choice(_MESSAGES),
    )
    assert abs(len(body) - _BODY) < 800, len(body)  # noqa: PLR2004 - about
    headers = github.sign(
        event="push", body=body, secret=servers.SECRET, delivery=str(uuid.uuid4()), now=datetime.now(UTC)
    )
    lines = [
        f"POST /hooks/{servers.CONNECTION} HTTP/1.1",
        "host: 127.0.0.1",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
