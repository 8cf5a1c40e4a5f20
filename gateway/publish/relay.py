"""The relay: publishes what was planned, and marks it as published only once the broker has confirmed it.

So a request is published at least once, and a repetition has the same id. The store is the queue: nothing
waits in memory but the one batch that is under way.
"""

import random
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import structlog

from gateway.errors import BrokerUnavailable, PublishError, StoreUnavailable
from gateway.store.executions import StoredRequest

log = structlog.get_logger()

_AT_ONCE = 512
_POLL_SECONDS = 1.0
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
_MOST_NAMED = 10
_BROKER = "broker"


class Outbox(Protocol):
    """Stored requests. Every call may raise `StoreUnavailable`."""

    async def pending(self, *, limit: int, without: Collection[str]) -> Sequence[StoredRequest]:
        """Return pending requests in planned order, but for those of the connections in `without`."""

    async def record(self, *, published: Sequence[str], refused: Mapping[str, str]) -> None:
        """Mark ids as published, and tell for others why the broker refused them."""


class Publisher(Protocol):
    """A broker."""

    async def open(self) -> None:
        """Connect, and declare the topology, unless that is done. Raises `BrokerUnavailable`."""

    async def publish(self, requests: Sequence[StoredRequest]) -> Sequence[PublishError | None]:
        """Publish in order; None for each that is confirmed. Raises `BrokerUnavailable`."""

    async def close(self) -> None:
        """Close the connection."""


class Waiter(Protocol):
    """Waits for news of the store."""

    async def wait(self, timeout: float) -> None:  # noqa: ASYNC109 - the time limit is not an error here
        """Return at news, or after `timeout` seconds."""


class _Delays:
    """How long to leave alone what has failed: doubled with each failure in a row, and spread a little."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def failed(self, what: str) -> float:
        failures = self._failures.get(what, 0)
        delay: float = min(_LONGEST_DELAY, _FIRST_DELAY * 2**failures) * random.uniform(0.75, 1.0)  # noqa: S311 - jitter
        self._failures[what] = failures + 1
        self._until[what] = time.monotonic() + delay
        return delay

    def succeeded(self, what: str) -> bool:
        """Forget the failures; say whether there were any."""
        self._until.pop(what, None)
        return self._failures.pop(what, 0) > 0

    def failing(self, what: str) -> bool:
        return what in self._failures

    def waiting(self) -> set[str]:
        now = time.monotonic()
        return {what for what, until in self._until.items() if until > now}


class Relay:
    """One relay. A broker that is away is waited for; a refused request holds up only its connection."""

    def __init__(self, outbox: Outbox, publisher: Publisher, news: Waiter) -> None:
        """Nothing is published before `run`."""
        self._outbox = outbox
        self._publisher = publisher
        self._news = news
        self._broker = _Delays()
        self._connections = _Delays()

    async def run(self) -> None:
        """Relay until cancelled."""
        try:
            while True:
                try:
                    idle = await self._round()
                except StoreUnavailable as error:
                    log.warning("the relay waits for the store", reason=str(error))
                    idle = _POLL_SECONDS
                except Exception:
                    log.exception("the relay failed; it goes on")
                    idle = _POLL_SECONDS
                if idle:
                    await self._news.wait(idle)
        finally:
            await self._publisher.close()

    async def _round(self) -> float:
        """Publish one batch; return for how many seconds there is nothing to do but wait for news."""
        if self._broker.waiting():
            return _FIRST_DELAY
        try:
            # Also with nothing to publish: consumers find their queue from the first start on.
            await self._publisher.open()
            requests = await self._outbox.pending(limit=_AT_ONCE, without=self._connections.waiting())
            if not requests:
                return _POLL_SECONDS
            outcomes = await self._publisher.publish(requests)
        except BrokerUnavailable as error:
            self._broker_failed(error)
            return _FIRST_DELAY
        published = []
        refused = {}
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome is None:
                published.append(request.id)
                self._connections.succeeded(request.connection)
            elif not isinstance(outcome, BrokerUnavailable):
                refused[request.id] = str(outcome)
        await self._outbox.record(published=published, refused=refused)
        self._tell(requests, outcomes)
        return 0.0 if published else _FIRST_DELAY

    def _tell(self, requests: Sequence[StoredRequest], outcomes: Sequence[PublishError | None]) -> None:
        """Say what happened, once for each thing that did, and put off what was refused."""
        lost = next((outcome for outcome in outcomes if isinstance(outcome, BrokerUnavailable)), None)
        if lost is not None:
            self._broker_failed(lost)
        elif self._broker.succeeded(_BROKER):
            log.info("the broker is back")
        published = [
            request.id for request, outcome in zip(requests, outcomes, strict=True) if outcome is None
        ]
        if published:
            log.info("requests published", count=len(published), executions=published[:_MOST_NAMED])
        failed: set[str] = set()
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome is None or isinstance(outcome, BrokerUnavailable) or request.connection in failed:
                continue
            failed.add(request.connection)
            log.warning(
                "request refused by the broker",
                execution=request.id,
                connection=request.connection,
                next_try_in_s=round(self._connections.failed(request.connection), 1),
                reason=str(outcome),
            )

    def _broker_failed(self, error: BrokerUnavailable) -> None:
        if not self._broker.failing(_BROKER):
            log.warning("the broker is away; requests wait in the store", reason=str(error))
        self._broker.failed(_BROKER)
