"""The webhook endpoint: verified, durable accepts of an 8 KB push, against a bare Starlette route.

The bare route only reads the body. The benchmark measures SQLite; the endpoint with nothing stored, the
upper limit for any store; pushes that each begin at an unknown commit, as if all had come in the wrong order;
PostgreSQL against SQLite; and, with the real command, two processes on PostgreSQL against one, if the kernel
can give each the same share of a core. adnanh/webhook, a server in Go, verifies the same requests of 8 KB and
of 1 MB; it stores nothing, and a second rule, which never matches, keeps it from running a command.

The same client loads all of them in turn with the same requests, each a different push, signed beforehand.
If the machine has two cores, server and client have one each. PostgreSQL runs on the same machine, and syncs
each commit.
"""

import asyncio
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
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
from testing.ports import free_ports
from testing.postgres import Postgres
from testing.service import Command, wait_for

_CLIENTS = 64
# Enough that two processes have full batches as well.
_MANY_CLIENTS = 256
# The share of each web process, so that two have as much as one, with PostgreSQL and the client on two cores.
_SHARE = 0.25
_REQUESTS = 3_000
_WARM_UP = 200
_ROUNDS = 3
_SECONDS = 80
# Fewer for processes that have only a share of a core.
_WORKERS_REQUESTS = 1_500
_MOST_SECONDS = 40
_BRANCHES = 256
_MB = 1024 * 1024
_LARGE_REQUESTS = 80
_LARGE_CLIENTS = 8
# Text that compresses about as well as commit messages.
_WORDS = ("the", "model", "learns", "faster", "with", "fewer", "epochs", "and", "a", "larger", "batch", "fix")
_MESSAGES = [" ".join(random.choices(_WORDS, k=580)) for _ in range(64)]
_LARGE_MESSAGE = " ".join(random.choices(_WORDS, k=93_000))
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)

_Server = Callable[[], AbstractContextManager[int]]


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
    adnanh = shutil.which("webhook")
    with ExitStack() as stack:
        postgres = cache(lambda: stack.enter_context(Postgres(durable=True)))
        for _ in rounds:
            requests = _pushes(_REQUESTS)
            large = _pushes(_LARGE_REQUESTS, messages=[_LARGE_MESSAGE])
            rounds.measure("bare", _round, _bare, requests)
            rounds.measure("SQLite", _round, _on_sqlite, requests)
            rounds.measure("source", _round, partial(_on_sqlite, "source"), requests)
            rounds.measure("unstored", _round, partial(_on_sqlite, "unstored"), requests)
            rounds.measure("unordered", _round, _on_sqlite, _pushes(_REQUESTS, in_order=False))
            rounds.measure("SQLite 1 MB", _large_round, _on_sqlite, large)
            if adnanh is not None:
                rounds.measure("adnanh", _round, partial(_adnanh, adnanh), requests)
                rounds.measure("adnanh 1 MB", _large_round, partial(_adnanh, adnanh), large)
            rounds.measure("PostgreSQL", _postgres_round, requests, postgres)
            for workers in (1, 2) if shares.is_possible() else ():
                few = requests[:_WORKERS_REQUESTS]
                rounds.measure(f"{workers} workers", _workers_round, workers, few, postgres)
    return [*_rows(rounds), *_adnanh_rows(rounds, is_installed=adnanh is not None), _workers_row(rounds)]


def _rows(rounds: Rounds) -> list[Row]:
    rate = attrgetter("rate")
    name = "webhook: durable accepts per second"
    rows = [rounds.row(name, "SQLite", "bare", aim=0.4, higher_is_better=True, of=rate)]
    name = "webhook: the limit for any store, per second: verified and parsed, nothing stored"
    rows.append(rounds.row(name, "unstored", "bare", aim=None, higher_is_better=True, of=rate))
    for percent in (50, 99):
        name, of = f"webhook: p{percent} in ms", methodcaller("percentile", percent)
        rows.append(rounds.row(name, "SQLite", "bare", aim=None, higher_is_better=False, of=of))
    name = "webhook: durable accepts per second of a source's deliveries, against a connection's"
    rows.append(rounds.row(name, "source", "SQLite", aim=0.9, higher_is_better=True, of=rate))
    name = "webhook: accepts per second, each push from an unknown commit, against pushes in order"
    rows.append(rounds.row(name, "unordered", "SQLite", aim=None, higher_is_better=True, of=rate))
    name = "webhook on PostgreSQL: durable accepts per second, against SQLite"
    rows.append(rounds.row(name, "PostgreSQL", "SQLite", aim=0.7, higher_is_better=True, of=rate))
    return rows


def _adnanh_rows(rounds: Rounds, *, is_installed: bool) -> list[Row]:
    rows = []
    for size, suffix, aim in (("8 KB", "", 1.0), ("1 MB", " 1 MB", None)):
        name = f"webhook: accepts of {size} per second, beside adnanh/webhook, which only verifies"
        if not is_installed:
            rows.append(unmeasured(name, "install Debian's package webhook", aim=aim))
            continue
        ours, theirs, of = f"SQLite{suffix}", f"adnanh{suffix}", attrgetter("rate")
        rows.append(rounds.row(name, ours, theirs, aim=aim, higher_is_better=True, of=of))
    return rows


def _workers_row(rounds: Rounds) -> Row:
    name = f"two web processes on PostgreSQL, against one, each limited to {_SHARE:g} of a core"
    if not shares.is_possible():
        return unmeasured(name, "the kernel lets this user limit no process's CPU", aim=1.6)
    rate = attrgetter("rate")
    return rounds.row(name, "2 workers", "1 workers", aim=1.6, higher_is_better=True, of=rate)


def _round(server: _Server, requests: Sequence[bytes]) -> _Load:
    with server() as port:
        uvloop.run(load(port, requests[:_WARM_UP], _CLIENTS))
        return uvloop.run(load(port, requests[_WARM_UP:], _CLIENTS))


def _large_round(server: _Server, requests: Sequence[bytes]) -> _Load:
    with server() as port:
        uvloop.run(load(port, requests[:_LARGE_CLIENTS], _LARGE_CLIENTS))
        return uvloop.run(load(port, requests[_LARGE_CLIENTS:], _LARGE_CLIENTS))


def _postgres_round(requests: Sequence[bytes], postgres: Callable[[], Postgres]) -> _Load:
    return _round(partial(_our_server, "webhook", postgres().database()), requests)


def _bare() -> AbstractContextManager[int]:
    return _our_server("bare")


@contextmanager
def _on_sqlite(kind: str = "webhook") -> Iterator[int]:
    with (
        tempfile.TemporaryDirectory(prefix="pushgate-bench-") as folder,
        _our_server(kind, f"sqlite:///{folder}/bench.db") as port,
    ):
        yield port


@contextmanager
def _adnanh(program: str) -> Iterator[int]:
    """Start adnanh/webhook: it answers a verified request with 202, any other with 500."""
    signature = {"source": "header", "name": "X-Hub-Signature-256"}
    verified = {"type": "payload-hmac-sha256", "secret": servers.SECRET.decode(), "parameter": signature}
    never = {"type": "value", "value": "", "parameter": {"source": "payload", "name": "ref"}}
    hook = {
        "id": servers.CONNECTION,
        "execute-command": shutil.which("true"),
        "trigger-rule": {"and": [{"match": verified}, {"match": never}]},
        "trigger-rule-mismatch-http-response-code": 202,
    }
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="pushgate-bench-") as folder:
        hooks = Path(folder) / "hooks.json"
        hooks.write_text(json.dumps([hook]), encoding="utf-8")
        options = ("-hooks", str(hooks), "-ip", "127.0.0.1", "-port", str(port))
        with _running([program, *options], port):
            yield port


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
        uvloop.run(load(port, requests[:_WARM_UP], _MANY_CLIENTS))
        return uvloop.run(load(port, requests[_WARM_UP:], _MANY_CLIENTS))


def _listening(service: Command, workers: int) -> list[int] | None:
    """Return the ids of the web processes once all of them listen."""
    pids = [line["pid"] for line in service.log() if line["event"] == "listening"]
    return pids if len(pids) == workers else None


async def load(port: int, requests: Sequence[bytes], clients: int) -> _Load:
    """Send requests over so many connections, each as soon as the last is answered with 200 or 202."""
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
        head, end, body = self._answer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head + b"\r\n")
        if not end or length is None or len(body) < int(length[1]):
            return  # an answer may come in pieces
        answer, self._answer = self._answer, b""
        self._latencies.append((time.perf_counter() - self._sent_at) * 1000)
        if not answer.startswith(b"HTTP/1.1 20"):
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
def _our_server(kind: str, *database: str) -> Iterator[int]:
    [port] = free_ports(1)
    with _running([sys.executable, "-m", "bench.servers", kind, str(port), *database], port):
        yield port


@contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[None]:
    """Run a server until the block ends, in which it listens on the port."""
    cores = sorted(os.sched_getaffinity(0))
    process = subprocess.Popen(command)
    try:
        if len(cores) > 1:
            # The client stays on one core, so that the server has the other to itself.
            os.sched_setaffinity(0, cores[1:])
        _wait_until_it_listens(port)
        yield
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


def _pushes(count: int, *, messages: Sequence[str] = _MESSAGES, in_order: bool = True) -> list[bytes]:
    """Return requests that push to the branches in turn.

    In order, each push begins where the one before it has ended; the first begins at an unknown commit, as on
    a branch that is older than its connection.
    """
    positions: dict[int, str] = {}
    requests = []
    for number in range(count):
        branch = number % _BRANCHES
        before = positions.get(branch) if in_order else None
        positions[branch] = after = _commit_id()
        requests.append(
            _request(branch, before or _commit_id(), after, message=messages[number % len(messages)])
        )
    return requests


def _commit_id() -> str:
    return uuid.uuid4().hex + uuid.uuid4().hex[:8]


def _request(branch: int, before: str, after: str, *, message: str) -> bytes:
    """Return a signed push to a branch."""
    body = push_payload(
        url=servers.URL,
        full_name="acme/digits",
        ref=f"refs/heads/branch-{branch:02x}",
        before=before,
        after=after,
        message=message,
    )
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
