"""A request's body, read from the stream under a cap on its size, its time, and what all bodies hold."""

import asyncio
from typing import Any

from starlette.types import Message, Receive, Scope

from gateway.errors import PushgateError

# Providers give up after 10 to 30 seconds themselves.
_BODY_TIMEOUT = 30.0
_LOOK_SECONDS = 1.0
_MAX_HELD_BYTES = 256 * 1024 * 1024


class TooLarge(PushgateError):
    """The body is larger than the limit."""


class TooSlow(PushgateError):
    """The body did not arrive in time."""


class TooMuch(PushgateError):
    """The bodies that are being received hold as much memory as they may."""


class Disconnected(PushgateError):
    """The client went away before its body was complete."""


class BodyReader:
    """Reads bodies of at most `limit` bytes each."""

    def __init__(self, *, limit: int, seconds: float = _BODY_TIMEOUT) -> None:
        """Hold nothing yet; `seconds` is how long a body may take to arrive."""
        self._limit = limit
        self._seconds = seconds
        self._held = 0
        # Who reads, since when, and who has been told that it takes too long. One timer looks after all of
        # them: a timeout of its own costs each request as much as verifying its signature.
        self._since: dict[asyncio.Task[Any], float] = {}
        self._overdue: set[asyncio.Task[Any]] = set()
        self._is_looking = False

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the whole body.

        Raises `TooLarge`, at once where the length is announced: the server passes over what the client still
        sends, see `gateway.server.http_limits`; `TooSlow`, `TooMuch`, `Disconnected`.
        """
        if _announced(scope) > self._limit:
            raise self._too_large()
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - a coroutine is always run by a task
        self._since[task] = loop.time()
        if not self._is_looking:
            self._is_looking = True
            loop.call_later(_LOOK_SECONDS, self._look, loop)
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

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for task, since in self._since.items():
            if now - since > self._seconds and task not in self._overdue:
                self._overdue.add(task)
                task.cancel()
        self._is_looking = bool(self._since)
        if self._is_looking:
            loop.call_later(_LOOK_SECONDS, self._look, loop)

    async def _collect(self, first: bytes, receive: Receive) -> bytes:
        chunks = [first]
        size = len(first)
        more = True
        self._held += size
        try:
            while more:
                if self._held > _MAX_HELD_BYTES:
                    raise TooMuch("too much is being received at once")
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
        raise Disconnected("the client went away before its body was complete")
    chunk: bytes = message.get("body", b"")
    return chunk


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
