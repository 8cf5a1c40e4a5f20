"""Read a request's body under limits on its size, its duration, and the memory that all bodies take."""

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope

from gateway.errors import PushgateError

# Providers give up after 10 to 30 seconds.
_BODY_TIMEOUT = 30.0
_CHECK_SECONDS = 1.0
_MAX_HELD_BYTES = 256 * 1024 * 1024


class TooLarge(PushgateError):
    """The body is larger than the limit."""


class TooSlow(PushgateError):
    """The body did not arrive in time."""


class TooMuch(PushgateError):
    """The bodies that are being received take all the memory that they may."""


class Disconnected(PushgateError):
    """The client disconnected before its body was complete."""


class BodyReader:
    """Reads request bodies of at most `limit` bytes each."""

    def __init__(self, *, limit: int, seconds: float = _BODY_TIMEOUT) -> None:
        """Allow `seconds` for a body to arrive."""
        self._limit = limit
        self._seconds = seconds
        self._held = 0
        # The tasks that read, with their start times, and those already cancelled for taking too long. One
        # timer checks all of them: a timeout for each request would cost as much as verifying its signature.
        self._since: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._is_checking = False

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body.

        Raises `TooLarge`, `TooSlow`, `TooMuch` or `Disconnected`. If Content-Length is too large, raises
        `TooLarge` at once; the server discards what the client still sends (`gateway.server.http_limits`).
        """
        if _content_length(scope) > self._limit:
            raise self._too_large()
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - a coroutine always runs in a task
        self._since[task] = loop.time()
        if not self._is_checking:
            self._is_checking = True
            loop.call_later(_CHECK_SECONDS, self._check, loop)
        try:
            message = await receive()
            chunk = _chunk(message)
            more = message.get("more_body", False)
            if len(chunk) > self._limit:
                raise self._too_large()
            return await self._collect(chunk, receive) if more else chunk
        except asyncio.CancelledError:
            if task in self._overdue:
                task.uncancel()
                raise TooSlow(f"the body did not arrive within {self._seconds:g} seconds") from None
            raise
        finally:
            del self._since[task]
            self._overdue.discard(task)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for task, since in self._since.items():
            if now - since > self._seconds and task not in self._overdue:
                self._overdue.add(task)
                task.cancel()
        self._is_checking = bool(self._since)
        if self._is_checking:
            loop.call_later(_CHECK_SECONDS, self._check, loop)

    async def _collect(self, first: bytes, receive: Receive) -> bytes:
        chunks = [first]
        size = len(first)
        more = True
        self._held += size
        try:
            while more:
                if self._held > _MAX_HELD_BYTES:
                    raise TooMuch("too many bodies are being received at once")
                message = await receive()
                more = message.get("more_body", False)
                chunks.append(_chunk(message))
                size += len(chunks[-1])
                self._held += len(chunks[-1])
                if size > self._limit:
                    raise self._too_large()
            return b"".join(chunks)
        finally:
            self._held -= size

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._limit} bytes")


def _chunk(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise Disconnected("the client disconnected before its body was complete")
    chunk: bytes = message.get("body", b"")
    return chunk


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
