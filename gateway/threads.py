"""Threads for work that would block the event loop: a bounded pool for each kind of work.

A kind that hangs, such as git on a host that never answers, does not delay the others. asyncio's own pool is
not used, because any library may fill it.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A bounded pool of threads, which start when they are needed."""

    def __init__(self, name: str, max_threads: int) -> None:
        """Begin without threads."""
        self._pool = ThreadPoolExecutor(max_threads, thread_name_prefix=name)

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
        """Run `work` in a thread. Cancelling the future does not stop the work."""
        context = contextvars.copy_context()
        call = partial(context.run, work, *args, **kwargs)
        return asyncio.get_running_loop().run_in_executor(self._pool, call)


async def to_the_end(running: "asyncio.Future[T]", *, stop: Callable[[], None]) -> T:
    """Return the result of work in a thread; when cancelled, call `stop`, and wait until the work ends."""
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop()
        await asyncio.wait([running])
        raise


# More than a process can use at once: further work waits in the store.
GIT = Threads("git", 256)
PACKING = Threads("pack", 64)
# A name server that does not answer occupies a thread longer than its caller waits.
NAMES = Threads("names", 64)
# Pure computation: more threads would only compete for the interpreter.
PLANNING = Threads("plan", 4)
WEBHOOKS = Threads("webhooks", 4)
API = Threads("api", 4)
PROBES = Threads("probes", 2)
FILES = Threads("files", 8)
PLATFORMS = Threads("platforms", 8)
MAIL = Threads("mail", 4)
