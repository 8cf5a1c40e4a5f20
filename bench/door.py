"""The door: verified, durable accepts of an 8 KB push, beside a bare Starlette route that reads the body.

The two are loaded in turn, by the same client, with the same requests: each a push of its own, signed
beforehand. Server and client have a core each where there are two.
"""

import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import uvloop

from bench.report import Row
from bench.servers import CONNECTION, SECRET, URL
from demo.github import push_payload
from providers import github

_CLIENTS = 64
_REQUESTS = 8_000
_ROUNDS = 5
_MOST_SECONDS = 60
_BODY = 8 * 1024
# Text that compresses about as commit messages do.
_WORDS = ("the", "model", "learns", "faster", "with", "fewer", "epochs", "and", "a", "larger", "batch", "fix")
_MESSAGES = [" ".join(random.choices(_WORDS, k=580)) for _ in range(64)]


@dataclass(frozen=True, slots=True)
class _Load:
    """What a round measured: requests per second, and the latency of each in ms."""

    rate: float
    latencies: list[float]


def run(progress: Callable[[str], None]) -> list[Row]:
    """Measure, and return the rows of the table."""
    bare: list[_Load] = []
    door: list[_Load] = []
    for number in range(_ROUNDS):
        progress(f"door: round {number + 1} of {_ROUNDS}")
        requests = [_request() for _ in range(_REQUESTS)]
        bare.append(_round("bare", requests))
        door.append(_round("door", requests))
    rate, yardstick = _median(bare), _median(door)
    latencies = sorted(latency for load in door for latency in load.latencies)
    bare_latencies = sorted(latency for load in bare for latency in load.latencies)
    rows = [Row("door: durable accepts per second", yardstick, rate, aim=0.5, higher_is_better=True)]
    for percent in (50, 99):
        value, other = _percentile(latencies, percent), _percentile(bare_latencies, percent)
        rows.append(Row(f"door: p{percent} in ms", value, other, aim=None, higher_is_better=False))
    return rows


def _round(kind: str, requests: Sequence[bytes]) -> _Load:
    with tempfile.TemporaryDirectory(prefix="pushgate-bench-") as folder, _server(kind, folder) as port:
        uvloop.run(_load(port, requests[:200]))
        return uvloop.run(_load(port, requests[200:]))


async def _load(port: int, requests: Sequence[bytes]) -> _Load:
    waiting = iter(requests)
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    ends = [
        (await loop.create_connection(lambda: _Client(waiting, latencies), "127.0.0.1", port))[1].done
        for _ in range(_CLIENTS)
    ]
    async with asyncio.timeout(_MOST_SECONDS):
        await asyncio.gather(*ends)
    return _Load(len(requests) / (time.perf_counter() - started), latencies)


class _Client(asyncio.Protocol):
    """One connection: the next request goes out when the answer to the last has come."""

    def __init__(self, waiting: Iterator[bytes], latencies: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting = waiting
        self._latencies = latencies
        self._sent_at = 0.0
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one, and no subclass of it
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
def _server(kind: str, folder: str) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-m", "bench.servers", kind, str(port), folder])
    try:
        if len(cores) > 1:
            # The client keeps to one core, so that the server has the other for itself.
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
    """Return a request of about 8 KB: a push of its own, to one of 256 branches."""
    after = uuid.uuid4().hex + uuid.uuid4().hex[:8]
    body = push_payload(
        url=URL,
        full_name="acme/digits",
        ref=f"refs/heads/branch-{after[:2]}",
        before=uuid.uuid4().hex + "0" * 8,
        after=after,
        message=random.choice(_MESSAGES),
    )
    assert abs(len(body) - _BODY) < 800, len(body)  # noqa: PLR2004 - about
    headers = github.sign(
        event="push", body=body, secret=SECRET, delivery=str(uuid.uuid4()), now=datetime.now(UTC)
    )
    lines = [
        f"POST /hooks/{CONNECTION} HTTP/1.1",
        "host: 127.0.0.1",
        f"content-length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _median(loads: Sequence[_Load]) -> float:
    return statistics.median(load.rate for load in loads)


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
