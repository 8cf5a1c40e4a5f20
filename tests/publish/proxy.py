"""A network that can be made to fail: TCP between one publisher and the broker."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Passes bytes to the broker and back, until a direction is held or the connections are cut."""

    def __init__(self, url: str) -> None:
        """Proxy the broker at this AMQP URL; `url` is the proxy's own."""
        self._parts = urlsplit(url)
        self._there = _Direction()
        self._back = _Direction()
        self._refuses = False
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
        """Cut the connections, and stop listening."""
        self._server.close()
        await self.cut()
        await self._server.wait_closed()

    def hold_answers(self) -> None:
        """Stop passing bytes from the broker; it still receives ours."""
        self._back.gate.clear()

    def freeze(self) -> None:
        """Stop passing bytes in both directions."""
        self._there.gate.clear()
        self._back.gate.clear()

    def refuse(self) -> None:
        """Close new connections at once."""
        self._refuses = True

    def heal(self) -> None:
        """Pass all bytes again."""
        self._refuses = False
        self._there.gate.set()
        self._back.gate.set()

    def cut_after(self, *, there: int | None = None, back: int | None = None) -> None:
        """Cut the connection, only once, after so many more bytes to the broker, or back."""
        self._there.ends_after(there, _abort)
        self._back.ends_after(back, _abort)

    def freeze_after(self, *, back: int) -> None:
        """Stop passing bytes after so many more from the broker."""
        self._back.ends_after(back, self.freeze)

    async def cut(self) -> None:
        """Cut all present connections, also those that do not reach the broker yet."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        # When a broker is down or closes, its side of the connection closes: so does the proxy's.
        with contextlib.suppress(OSError), _aborted(writer):
            if self._refuses:
                return
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


def _abort() -> None:
    raise ConnectionAbortedError


class _Direction:
    """One direction of the proxy: whether it is open, and what happens after how many bytes."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self._left: int | None = None
        self._then: Callable[[], None] = _abort

    def ends_after(self, count: int | None, then: Callable[[], None]) -> None:
        self._left, self._then = count, then

    def parts(self, data: bytes) -> tuple[bytes, bytes, Callable[[], None] | None]:
        """Return the bytes that may pass, the bytes after them, and what happens in between."""
        if self._left is None or len(data) <= self._left:
            self._left = None if self._left is None else self._left - len(data)
            return data, b"", None
        passing, self._left = self._left, None
        return data[:passing], data[passing:], self._then


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter, way: _Direction) -> None:
    # So that drained bytes are sent, even if the connection is aborted then.
    target.transport.set_write_buffer_limits(0)
    while True:
        await way.gate.wait()
        data = await source.read(65536)
        if not data:
            break
        await way.gate.wait()
        first, rest, then = way.parts(data)
        target.write(first)
        await target.drain()
        if then is not None:
            then()
            await way.gate.wait()
            target.write(rest)
            await target.drain()
    target.close()
