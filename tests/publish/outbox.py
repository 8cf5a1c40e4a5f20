"""An outbox in memory, and requests to put into it."""

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from gateway.errors import StoreUnavailable
from gateway.publish.relay import Completion, Publisher, Relay
from gateway.store.events import StoredEvent
from gateway.store.executions import StoredRequest
from gateway.store.notify import Notifier
from testing.service import WAIT_SECONDS

PLANNED_AT = datetime(2026, 11, 23, 9, 0, 0, tzinfo=UTC)


def request(
    name: str = "r1", *, connection: str = "c1", project: str = "digits", seq: int = 1
) -> StoredRequest:
    """Make a request whose body is its name."""
    return StoredRequest(
        seq=seq,
        id=name,
        connection=connection,
        delivery=f"delivery of {name}",
        ref_update=seq,
        project=project,
        trigger="main",
        target="train",
        subject="train at 1234567",
        body=name.encode(),
        planned_at=PLANNED_AT,
    )


def event(
    which: str = "e1",
    *,
    name: str = "push.fetched",
    connection: str = "c1",
    project: str = "digits",
    body: bytes | None = None,
    seq: int = 1,
) -> StoredEvent:
    """Make an event whose body is its id, if none is given."""
    return StoredEvent(
        seq=seq,
        id=which,
        connection=connection,
        delivery=f"delivery of {which}",
        name=name,
        project=project,
        subject="acme/digits at 1234567",
        body=which.encode() if body is None else body,
        settled_at=PLANNED_AT,
    )


class MemoryOutbox:
    """Keeps requests as the store does. It can be made to fail, and signals changes."""

    def __init__(self) -> None:
        """Begin empty."""
        self.requests: dict[str, StoredRequest] = {}
        self.writable = True
        self.is_leader = True
        self.outages: list[str | None] = []
        self.failures = 0
        self._numbers = itertools.count(1)
        self._changed = asyncio.Condition()
        self._notifier = Notifier()

    def plan(self, name: str, *, connection: str = "c1", project: str = "digits") -> None:
        """Add a request."""
        seq = next(self._numbers)
        self.requests[name] = request(name, connection=connection, project=project, seq=seq)
        self._notifier.notify()

    async def pending(self, *, limit: int, without: Collection[str]) -> Sequence[StoredRequest] | None:
        """See the protocol."""
        if not self.is_leader:
            return None
        found = (one for one in self.requests.values() if one.state == "pending")
        return list(itertools.islice((one for one in found if one.connection not in without), limit))

    async def record(
        self, *, published: Sequence[str], refused: Mapping[str, str], undeliverable: Mapping[str, str]
    ) -> None:
        """See the protocol."""
        async with self._changed:
            self._changed.notify_all()
            if not self.writable:
                self.failures += 1
                raise StoreUnavailable("the disk is full")
            for name in published:
                self._change(name, state="published", reason=None)
            for name, reason in refused.items():
                self._change(name, reason=reason)
            for name, reason in undeliverable.items():
                self._change(name, state="undeliverable", reason=reason)

    async def record_outage(self, outage: str | None) -> bool:
        """See the protocol."""
        async with self._changed:
            self._changed.notify_all()
            self.outages.append(outage)
        return self.is_leader

    def _change(self, name: str, **changes: str | None) -> None:
        self.requests[name] = dataclasses.replace(self.requests[name], **changes)  # type: ignore[arg-type]

    def published(self) -> list[str]:
        """Return the names of the requests marked as published."""
        return [one.id for one in self.requests.values() if one.state == "published"]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once a condition is true; check it after each recording."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(condition)

    async def until_all_are_published(self) -> None:
        """Return once nothing is pending."""
        await self.until(lambda: len(self.published()) == len(self.requests))

    @asynccontextmanager
    async def relayed_by(
        self, publisher: Publisher, *, complete: Completion | None = None, poll: float = 1.0
    ) -> AsyncIterator[None]:
        """Run a relay for as long as the block lasts."""
        relay = Relay(self, publisher, self._notifier.subscribe(), complete=complete, poll=poll)
        running = asyncio.create_task(relay.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait({running})
