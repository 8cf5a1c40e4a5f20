"""Serve an application under limits, and clients of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from gateway.server.http_limits import ClientLimits, limited

App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
# Nothing here takes this long unless something is broken.
PATIENCE = 20.0
SOON = 0.05
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer at once, and read no body."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def count(_scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer with its size."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        more = message["more_body"]
    body = b"%08d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": body})


class Client:
    """A client of the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Wrap a connection."""
        self._reader = reader
        self._writer = writer

    async def send(self, *pieces: bytes) -> None:
        """Send as much as the server reads."""
        with suppress(ConnectionError):
            for piece in pieces:
                self._writer.write(piece)
                await self._writer.drain()

    async def status(self) -> int | None:
        """Return the status of the next answer; None if the connection ends without one."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        self.headers, self.body = head, await self._reader.readexactly(int(length.partition(b":")[2]))
        return int(head.split(b" ", 2)[1])

    async def ask(self, *pieces: bytes) -> int | None:
        """Send, and return the status of the answer."""
        await self.send(*pieces)
        return await self.status()

    async def is_hung_up_on(self) -> bool:
        """Wait for the end of the connection, and return whether nothing else arrived."""
        with suppress(ConnectionError):
            return not await self._reader.read(1)
        return True

    async def has_ended(self) -> None:
        """Read until the connection has ended."""
        with suppress(ConnectionError):
            await self._reader.read()

    def close(self) -> None:
        """Close the connection."""
        self._writer.close()


class Server:
    """The server, and the clients that the test has opened."""

    def __init__(self, port: int) -> None:
        """Begin without clients."""
        self._port = port
        self._clients: list[Client] = []

    async def client(self) -> Client:
        """Connect."""
        self._clients.append(Client(*await asyncio.open_connection("127.0.0.1", self._port)))
        return self._clients[-1]

    async def ask(self, *pieces: bytes) -> int | None:
        """Return the status of the answer to one request on a new connection."""
        return await (await self.client()).ask(*pieces)

    def close(self) -> None:
        """Close all clients."""
        for client in self._clients:
            client.close()


@asynccontextmanager
async def serving(app: App = answer, limits: ClientLimits | None = None) -> AsyncIterator[Server]:
    """Serve an application on a free port, under these limits."""
    config = uvicorn.Config(app, ws="none", lifespan="off", log_config=None)
    config.load()
    state = ServerState()
    make: Any = limited(limits or quick())
    async with asyncio.timeout(PATIENCE):
        listening = await asyncio.get_running_loop().create_server(
            lambda: make(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        server = Server(listening.sockets[0].getsockname()[1])
        try:
            yield server
        finally:
            server.close()
            listening.close()
            for task in state.tasks:
                task.cancel()


def quick(*, connections: int = 50, **times: float) -> ClientLimits:
    """Return limits with frequent checks; only the given time-outs are short."""
    long = {"keep_alive": 60.0, "headers": 60.0, "body": 60.0, "stall": 60.0, "check": 0.01}
    return ClientLimits(connections=connections, **{**long, **times})


def soon(limit: str) -> Any:
    """Return limits with one short time-out."""
    return {limit: SOON}


def request(*lines: bytes, path: bytes = b"/", version: bytes = b"1.1", body: bytes = b"") -> bytes:
    """Return a request with these header lines."""
    first = b"POST %s HTTP/%s" % (path, version)
    return b"".join(line + b"\r\n" for line in (first, *lines, b"")) + body


HOST = b"host: x"
