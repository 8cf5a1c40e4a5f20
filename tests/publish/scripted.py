"""A broker and an outbox that do what a test has written down."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from gateway.publish.cloudevents import Stored
from gateway.publish.relay import Relay
from gateway.store.executions import StoredRequest
from gateway.store.notify import Notifier
from testing.service import wait_for
from tests.publish.outbox import MemoryOutbox

NEVER = 3600.0


class Clock:
    """The relay's clock, which only the test moves."""

    def __init__(self) -> None:
        """Begin at an arbitrary time."""
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@dataclass
class Scripted:
    """A publisher that raises the given errors, and confirms everything else."""

    answers: dict[str, list[Exception]] = field(default_factory=dict)
    opening: list[Exception] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)
    closed: int = 0
    gate: asyncio.Event | None = None
    shared: set[str] = field(default_factory=set)
    on_their_way: Counter[str] = field(default_factory=Counter)

    async def open(self) -> None:
        """Raise the given errors, then open."""
        if self.opening:
            raise self.opening.pop(0)

    async def publish(self, stored: Stored) -> None:
        """Raise this message's errors, then confirm it."""
        self.sent.append(stored.id)
        self.on_their_way[stored.id] += 1
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        if self.on_their_way.total() > 1:
            self.shared |= self.on_their_way.keys()
        del self.on_their_way[stored.id]
        errors = self.answers.get(stored.id)
        if errors:
            raise errors.pop(0)

    async def close(self) -> None:
        """Note that it was closed."""
        self.closed += 1


class Asked(MemoryOutbox):
    """An outbox that notes the reads and the recordings; reading it can fail."""

    def __init__(self, *names: str) -> None:
        """Plan these requests; the part before the slash is the connection."""
        super().__init__()
        self.asked: list[tuple[int, set[str]]] = []
        self.reading: list[Exception] = []
        self.refused: list[str] = []
        for name in names:
            self.plan(name, connection=name.partition("/")[0])

    async def pending(self, *, limit: int, without: Collection[str]) -> Sequence[StoredRequest] | None:
        """See the protocol."""
        self.asked.append((limit, set(without)))
        if self.reading:
            raise self.reading.pop(0)
        return await super().pending(limit=limit, without=without)

    async def record(
        self, *, published: Sequence[str], refused: Mapping[str, str], undeliverable: Mapping[str, str]
    ) -> None:
        """See the protocol."""
        self.refused += refused
        await super().record(published=published, refused=refused, undeliverable=undeliverable)

    async def asked_again(self, times: int = 3) -> None:
        """Return after so many more reads by the relay: by then it has done its work."""
        wanted = len(self.asked) + times
        await until(lambda: len(self.asked) >= wanted, "the relay reads the outbox")

    @property
    def pending_names(self) -> list[str]:
        """The names of the pending requests."""
        return [one.id for one in self.requests.values() if one.state == "pending"]


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait until a condition is true."""
    await asyncio.to_thread(wait_for, condition, what)


@asynccontextmanager
async def relaying(
    outbox: MemoryOutbox,
    publisher: Scripted,
    *,
    what: Literal["request", "event"] = "request",
    poll: float = 0.005,
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a relay."""
    running = asyncio.create_task(
        Relay(outbox, publisher, Notifier().subscribe(), what=what, poll=poll).run()
    )
    try:
        yield running
    finally:
        running.cancel()
        await asyncio.wait({running})
