"""Threads for what would hold up the event loop: a bounded pool for each kind of work.

One kind that hangs, as git does over a host that never answers, holds up no other. asyncio's own pool, which
any library may fill, is used for nothing.
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
    """A pool of at most so many threads, which start as they are needed."""

    def __init__(self, name: str, most: int) -> None:
        """Begin with none."""
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=name)

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "asyncio.Future[T]":
        """Do `work` in a thread. Whoever no longer waits for it does not end it."""
        context = contextvars.copy_context()
        call = partial(context.run, work, *args, **kwargs)
        return asyncio.get_running_loop().run_in_executor(self._pool, call)


# More than all places of a process can use: what waits for a place does so in the store.
GIT = Threads("git", 256)
PACKING = Threads("pack", 64)
# A name server that does not answer keeps a thread for longer than anybody waits for it.
NAMES = Threads("names", 64)
# What computes: more threads than these would only share the interpreter.
PLANNING = Threads("plan", 4)
DOOR = Threads("door", 4)
API = Threads("api", 4)
PROBES = Threads("probes", 2)
FILES = Threads("files", 8)
PLATFORMS = Threads("platforms", 8)
