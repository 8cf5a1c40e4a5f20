"""The relay: publishes what was planned, and marks it as published only once the broker has confirmed it.

So a request is published at least once, and a repetition has the same id. Requests of one connection are
published one after the other, in the order in which they were planned: the next is sent when the last is
confirmed, for a refusal in between would turn them around. Those of different connections share a window.
A broker that refuses a message closes the channel over it, and whatever was on its way is uncertain: these
messages are then sent one by one, so that the one at fault is found, and concerns nobody else.
Events have a relay of their own, so that nobody who takes events too slowly holds up a request.

The store is the queue: nothing waits in memory but the one batch that is under way. Reading the next batch
and recording the last one while a batch is being published was measured, and is slower: the threads of the
store and the event loop then take the interpreter from each other.
"""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Literal, Protocol

import structlog

from gateway.backoff import backoff
from gateway.errors import (
    Ambiguous,
    BrokerUnavailable,
    Interrupted,
    PublishError,
    StoreUnavailable,
    Undeliverable,
    Unroutable,
)
from gateway.metrics import BROKER_CONNECTED, EVENTS_PUBLISHED, PUBLISHED, STAGE, UNDELIVERABLE
from gateway.publish.cloudevents import Stored
from gateway.store.executions import READ_BYTES, StoredRequest
from gateway.store.notify import Waiter

log = structlog.get_logger()

# Measured: 64 messages under way at once is the best window of aio-pika.
_WINDOW = 64
# At the end of each batch the window drains: 512 requests at once were measured to be 7 % slower.
_BATCH_SIZE = 1024
# After so long a batch makes way for the next: one connection's backlog is not to keep the others waiting,
# and a relay that has lost its lead sends nothing more (gateway/store/executions.py waits for that).
_BATCH_SECONDS = 0.5
_POLL_SECONDS = 1.0
# For how long an ending relay waits for the confirms of what it has sent.
_FLUSH_SECONDS = 5.0
_FIRST_DELAY = 0.5
_MAX_DELAY = 30.0
# From so many refused connections on nothing is taken: a query leaves theirs out by name.
_MAX_HELD = 10_000
_MAX_NAMED = 10
# After so many lost connections with one message alone on its way, that message is taken to be the cause.
_MAX_LOSSES = 3
_COUNTED = {"request": PUBLISHED, "event": EVENTS_PUBLISHED}
_PUBLISH = STAGE.labels("planned to published")


class Outbox(Protocol):
    """Stored requests, or events. Every call may raise `StoreUnavailable`."""

    async def pending(self, *, limit: int, without: Collection[str]) -> Sequence[Stored] | None:
        """Return what is pending in planned order, but for those of the connections in `without`.

        None where another process relays.
        """

    async def record(
        self, *, published: Sequence[str], refused: Mapping[str, str], undeliverable: Mapping[str, str]
    ) -> None:
        """Mark ids as published, tell why others were refused, and end those that the broker never takes."""

    async def tell(self, outage: str | None) -> bool:
        """Record why nothing is published, or that all is well; False where another process relays."""


class Publisher(Protocol):
    """A broker."""

    async def open(self) -> None:
        """Be ready to publish; costs nothing where that is so already. Raises `PublishError`."""

    async def publish(self, stored: Stored) -> None:
        """Return when the broker has the message.

        Raises `Unroutable` where it refused this one, `Undeliverable` where it always will, `Ambiguous` where
        it refused this one or another, and another `PublishError` where nobody knows.
        """

    async def close(self) -> None:
        """Close the connection."""


class _Delay:
    """How long to leave alone what has failed, and how often it has."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    def failed(self) -> float:
        """Return the seconds until the next try."""
        seconds = backoff(self._failures, first=_FIRST_DELAY, longest=_MAX_DELAY)
        self._failures += 1
        self._until = time.monotonic() + seconds
        return seconds

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    @property
    def is_over(self) -> bool:
        return self.seconds_left == 0


class Relay:
    """One relay. A broker that is away is waited for; a refused request holds up only its connection.

    `what` is in the outbox: requests, or events, which go the same way.
    """

    def __init__(
        self,
        outbox: Outbox,
        publisher: Publisher,
        wakeups: Waiter,
        *,
        what: Literal["request", "event"] = "request",
        poll: float = _POLL_SECONDS,
    ) -> None:
        """Nothing is published before `run`. After `poll` seconds without news the outbox is read anyway."""
        self._poll = poll
        self._what = what
        self._outbox = outbox
        self._publisher = publisher
        self._wakeups = wakeups
        self._window = asyncio.Semaphore(_WINDOW)
        self._held: dict[str, _Delay] = {}
        self._outage: _Delay | None = None
        self._told: type[Exception] | None = None
        self._is_ending = False
        # What those who look are told; at first what a process before this one has told, if it did.
        self._shown: str | None = "unknown"
        # What the broker has said and the store does not know yet.
        self._published: list[str] = []
        self._refused: dict[str, str] = {}
        self._undeliverable: dict[str, str] = {}
        # What was on its way when a channel or a connection ended, and how often one ended over it alone.
        self._suspects: dict[str, int] = {}

    async def run(self) -> None:
        """Relay until cancelled. Nothing that goes wrong ends it.

        When cancelled, it waits for the confirms of what it has sent, and writes them down, before it ends.
        """
        try:
            while True:
                try:
                    # First what an earlier failure kept from being written: it is not to be published again.
                    await self._record()
                    # Also with nothing to publish: consumers find their queue from the first start on.
                    await self._publisher.open()
                    BROKER_CONNECTED.labels(self._what).set(1)
                    is_more = await self._batch()
                except (PublishError, StoreUnavailable) as error:
                    if isinstance(error, PublishError):
                        BROKER_CONNECTED.labels(self._what).set(0)
                        await self._show(str(error))
                    await asyncio.sleep(self._failed(error))
                except Exception:
                    log.exception("the relay failed; it goes on")
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    await self._show(None)
                    self._succeeded()
                    if not is_more:
                        await self._wakeups.wait(self._idle_seconds())
        finally:
            try:
                await self._record()
            except StoreUnavailable as error:
                log.warning(
                    "confirmed requests will be published again",
                    count=len(self._published),
                    reason=str(error),
                )
            await self._publisher.close()

    async def _batch(self) -> bool:
        """Publish one batch; say whether there may be more that can be published now."""
        held = {connection for connection, delay in self._held.items() if not delay.is_over}
        if len(held) >= _MAX_HELD:
            return False
        requests = await self._outbox.pending(limit=_BATCH_SIZE, without=held)
        if requests is None:
            # Whoever relays now tells of outages as well: what this process has told may not hold any more.
            self._shown = "unknown"
            return False
        lanes: dict[str, list[Stored]] = {}
        for request in requests:
            lanes.setdefault(request.connection, []).append(request)
        size = sum(len(request.body) for request in requests)
        is_more = len(requests) == _BATCH_SIZE or size >= READ_BYTES
        if not is_more:
            # Who has nothing pending any more, a deleted connection perhaps, has nothing to wait for.
            self._held = {name: delay for name, delay in self._held.items() if name in held or name in lanes}
        if not is_more and not held:
            waiting = {request.id for request in requests}
            self._suspects = {one: losses for one, losses in self._suspects.items() if one in waiting}
        suspects = [lane[0] for lane in lanes.values() if lane[0].id in self._suspects]
        # An outage ends each lane by itself: what is confirmed until then is recorded, the rest taken again.
        ends = await self._to_the_end(
            asyncio.ensure_future(self._one_by_one(suspects))
            if suspects
            else asyncio.gather(*map(self._publish, lanes.values()), return_exceptions=True)
        )
        # Over a refusal the broker closes the channel: that is no outage, and what was not sent is sent next.
        is_refusal = bool(self._undeliverable) or any(isinstance(end, Ambiguous) for end in ends)
        await self._record()
        for end in ends:
            if isinstance(end, BaseException) and not (is_refusal and _is_by_the_way(end)):
                raise end
        return is_more or is_refusal or bool(suspects) or not all(ends)

    async def _to_the_end(
        self, publishing: asyncio.Future[list[bool | BaseException]]
    ) -> list[bool | BaseException]:
        """Wait for a batch; when cancelled, still for the confirms of what was sent, for a while."""
        try:
            return await asyncio.shield(publishing)
        except asyncio.CancelledError:
            # Who leaves without a confirm that is on its way will have the message sent again.
            self._is_ending = True
            await asyncio.wait([publishing], timeout=_FLUSH_SECONDS)
            publishing.cancel()
            await asyncio.wait([publishing])
            raise

    async def _one_by_one(self, suspects: Sequence[Stored]) -> list[bool | BaseException]:
        """Publish messages of which one has ended the channel, or the connection: now it shows which."""
        try:
            for suspect in sorted(suspects, key=lambda one: self._suspects[one.id]):
                await self._publisher.open()
                await self._publish([suspect], is_alone=True)
        except PublishError as error:
            return [error]
        return [True]

    async def _publish(self, lane: Sequence[Stored], *, is_alone: bool = False) -> bool:
        """Publish a connection's requests one after the other, up to the first that is refused.

        Return False where time has run out before that. `is_alone` says that nothing else is on its way.
        """
        until = time.monotonic() + _BATCH_SECONDS
        for request in lane:
            async with self._window:
                # With a place in the window: by then another relay may lead, and this batch be out of date.
                if self._is_ending or time.monotonic() > until:
                    return False
                try:
                    await self._publisher.publish(request)
                except Unroutable as error:
                    self._refuse(request, str(error))
                    break
                except Undeliverable as error:
                    self._give_up(request, str(error))
                    break
                except (Ambiguous, Interrupted) as error:
                    if not self._is_cause(request, is_alone=is_alone):
                        raise
                    told = "the connection ends each time that this message is sent alone"
                    self._refuse(request, f"{told}: {error}")
                    break
                except PublishError:
                    raise
                except Exception as error:
                    # A bug of ours, or of the library's: it holds up this connection, and no other.
                    log.exception("a message could not be sent", what=self._what, id=request.id)
                    self._refuse(request, f"the message could not be sent ({type(error).__name__})")
                    break
            self._published.append(request.id)
            if isinstance(request, StoredRequest):
                _PUBLISH.observe((datetime.now(UTC) - request.planned_at).total_seconds())
            self._held.pop(request.connection, None)
            self._suspects.pop(request.id, None)
        return True

    def _is_cause(self, request: Stored, *, is_alone: bool) -> bool:
        """Have a message sent alone the next time; say whether it seems to be why the connection ended.

        A broker may go away by chance: only a message that was alone several times is taken to be the cause.
        """
        losses = self._suspects.get(request.id, 0) + is_alone
        self._suspects[request.id] = losses
        return losses >= _MAX_LOSSES

    def _give_up(self, request: Stored, reason: str) -> None:
        """End a message that the broker will never take; the next one of its connection is sent."""
        self._held.pop(request.connection, None)
        self._suspects.pop(request.id, None)
        self._undeliverable[request.id] = reason
        log.error(
            "message cannot be delivered",
            what=self._what,
            id=request.id,
            connection=request.connection,
            bytes=len(request.body),
            reason=reason,
        )

    def _refuse(self, request: Stored, reason: str) -> None:
        """Leave the connection alone for a while; its later requests wait in the store behind this one."""
        seconds = self._held.setdefault(request.connection, _Delay()).failed()
        if reason == request.reason:
            return
        self._refused[request.id] = reason
        log.warning(
            "message refused by the broker",
            what=self._what,
            id=request.id,
            connection=request.connection,
            next_try_in_s=round(seconds, 1),
            reason=reason,
        )

    async def _record(self) -> None:
        """Write down what the broker has said; what cannot be written now is kept for the next time."""
        if not self._published and not self._refused and not self._undeliverable:
            return
        await self._outbox.record(
            published=self._published, refused=self._refused, undeliverable=self._undeliverable
        )
        _COUNTED[self._what].inc(len(self._published))
        UNDELIVERABLE.labels(self._what).inc(len(self._undeliverable))
        if self._published:
            named = self._published[:_MAX_NAMED]
            log.info("messages published", what=self._what, count=len(self._published), ids=named)
        self._published, self._refused, self._undeliverable = [], {}, {}

    async def _show(self, outage: str | None) -> None:
        """Record an outage, or its end, for those who look at executions; the store may be away as well."""
        if outage == self._shown:
            return
        with suppress(StoreUnavailable):
            if await self._outbox.tell(outage):
                self._shown = outage

    def _failed(self, error: PublishError | StoreUnavailable) -> float:
        """Say once of each kind of outage that there is one; return for how many seconds to wait."""
        if self._outage is None:
            self._outage = _Delay()
        if self._told is not type(error):
            self._told = type(error)
            if isinstance(error, StoreUnavailable):
                log.warning("the relay waits for the store", reason=str(error))
            else:
                log.warning(
                    "the broker is away; messages wait in the store", what=self._what, reason=str(error)
                )
        return self._outage.failed()

    def _succeeded(self) -> None:
        if self._outage is not None:
            self._outage = self._told = None
            log.info("the relay goes on")

    def _idle_seconds(self) -> float:
        """Return for how long there is nothing to do but wait for news."""
        return min([self._poll, *(delay.seconds_left for delay in self._held.values())])


def _is_by_the_way(error: BaseException) -> bool:
    """Say whether an error only means that the channel was closed over another message's refusal."""
    return isinstance(error, Ambiguous | BrokerUnavailable) and not isinstance(error, Interrupted)
