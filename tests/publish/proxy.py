"""A network that can be made to fail: TCP between one publisher and the broker."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Passes bytes to the broker and back, until one of the directions is held or everything is cut."""

    def __init__(self, url: str) -> None:
        """Stand before the broker with this AMQP URL; `url` is then the way through the proxy."""
        self._parts = urlsplit(url)
        self._there = asyncio.Event()
        self._back = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.heal()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user = self._parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(self._parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut, and listen no more."""
        self._server.close()
        await self.cut()
        await self._server.wait_closed()

    def hold_answers(self) -> None:
        """From now on the broker hears, and is not heard."""
        self._back.clear()

    def freeze(self) -> None:
        """From now on nothing passes."""
        self._there.clear()
        self._back.clear()

    def heal(self) -> None:
        """Let everything pass again."""
        self._there.set()
        self._back.set()

    async def cut(self) -> None:
        """Break the connections that there are."""
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writers.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broker_reader, broker_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        self._writers |= {writer, broker_writer}
        for source, target, gate in (
            (reader, broker_writer, self._there),
            (broker_reader, writer, self._back),
        ):
            task = asyncio.create_task(_pass(source, target, gate))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while True:
            await gate.wait()
            data = await source.read(65536)
            if not data:
                break
            await gate.wait()
            target.write(data)
            await target.drain()
    target.close()
