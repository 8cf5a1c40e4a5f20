"""A network that can be made to fail: TCP between one publisher and the broker."""

import asyncio
import contextlib
from collections.abc import Iterator
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
        self._connections: set[asyncio.Task[None]] = set()
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
        """Break the connections that there are, also those that do not reach the broker yet."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        # A broker that is down, or leaves, takes its side of the connection with it: so does the proxy.
        with contextlib.suppress(OSError), _aborted(writer):
            broker = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            with _aborted(broker[1]):
                await asyncio.gather(
                    _pass(reader, broker[1], self._there), _pass(broker[0], writer, self._back)
                )


@contextlib.contextmanager
def _aborted(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    finally:
        writer.transport.abort()


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    while True:
        await gate.wait()
        data = await source.read(65536)
        if not data:
            break
        await gate.wait()
        target.write(data)
        await target.drain()
    target.close()
