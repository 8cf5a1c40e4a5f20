"""Tells those who wait that the store has something new. Only a shortcut: they poll beneath it."""

import asyncio
from weakref import WeakSet


class Listener:
    """One who waits. A ring between two waits is not missed: it ends the next one at once."""

    def __init__(self) -> None:
        """Begin with nothing heard."""
        self._heard = asyncio.Event()

    def hear(self) -> None:
        """End the wait that is under way, or the next one."""
        self._heard.set()

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the time limit is not an error here
        """Return at a ring, or after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._heard.wait()
        except TimeoutError:
            return
        finally:
            self._heard.clear()


class Doorbell:
    """Rung on the event loop, heard by every listener."""

    def __init__(self) -> None:
        """Begin without listeners."""
        self._listeners: WeakSet[Listener] = WeakSet()

    def listener(self) -> Listener:
        """Return a new listener; it is forgotten when nobody holds it any more."""
        listener = Listener()
        self._listeners.add(listener)
        return listener

    def ring(self) -> None:
        """Wake every listener."""
        for listener in self._listeners:
            listener.hear()
