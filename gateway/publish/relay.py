"""The relay: publishes the outbox, and marks a message as published only once the broker has confirmed it.

A request is therefore published at least once, and a repetition has the same id. Requests of one connection
are published one after another, in the order in which they were planned: each is sent after the previous
one is confirmed, because a refusal in between would reorder them. Different connections share a window.
A broker that refuses a message closes the channel, which leaves all messages in flight uncertain: these are
then sent one by one, which isolates the message at fault.
Events have a relay of their own, so that a slow consumer of events does not delay requests.

The store is the queue: only the current batch is in memory. Reading the next batch and recording the last one
while a batch is being published was measured, and is slower: the store's threads and the event loop then
compete for the interpreter.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
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
from gateway.metrics import (
    BROKER_CONNECTED,
    BROKER_FAILURES,
    EVENTS_PUBLISHED,
    PUBLISHED,
    RELAYS_LEADING,
    UNDELIVERABLE,
    stage,
)
from gateway.publish.cloudevents import Stored
from gateway.store.events import StoredEvent
from gateway.store.executions import READ_BYTES, StoredRequest
from gateway.store.notify import Waiter

log = structlog.get_logger()

# Measured: 64 messages in flight are the best window for aio-pika.
_WINDOW = 64
# The window drains at the end of each batch: batches of 512 requests were measured to be 7 % slower.
_BATCH_SIZE = 1024
# The maximum duration of a batch, so that one connection's backlog does not delay the others, and a relay
# that has lost its lead stops sending (its successor waits: `TAKE_OVER_SECONDS` in gateway/store/leading.py).
_BATCH_SECONDS = 0.5
_POLL_SECONDS = 1.0
# How long a stopping relay waits for the confirms of what it has sent.
_FLUSH_SECONDS = 5.0
FIRST_DELAY = 0.5
MAX_DELAY = 30.0
# With this many connections on hold, nothing is read: the query excludes each by name.
_MAX_HELD = 10_000
_MAX_NAMED = 10
# A message is taken to be the cause after it was in flight alone for this many lost connections.
_MAX_LOSSES = 3
_COUNTED = {"request": PUBLISHED, "event": EVENTS_PUBLISHED}


class Outbox(Protocol):
    """Stored requests, or events. Every call may raise `StoreUnavailable`."""

    async def pending(self, *, limit: int, without: Collection[str]) -> Sequence[Stored] | None:
        """Return pending messages in planned order, except those of the connections in `without`.

        Returns None if another process relays.
        """

    async def record(
        self, *, published: Sequence[str], refused: Mapping[str, str], undeliverable: Mapping[str, str]
    ) -> None:
        """Record which ids were published, why others were refused, and which are undeliverable."""

    async def record_outage(self, outage: str | None) -> bool:
        """Record an outage, or None for its end; return False if another process relays."""


class Publisher(Protocol):
    """A broker."""

    async def open(self) -> None:
        """Prepare to publish; a no-op if that is done already. Raises `PublishError`."""

    async def publish(self, stored: Stored) -> None:
        """Return when the broker has confirmed the message.

        Raises `Unroutable` if the broker refused it, `Undeliverable` if it always will, `Ambiguous` if it
        refused this message or another, and another `PublishError` if the outcome is unknown.
        """

    async def close(self) -> None:
        """Close the connection."""


Completion = Callable[[StoredRequest], Awaitable[StoredRequest]]
"""Completes a request right before it is sent, for example with a URL that is valid from then on.

Raises `Undeliverable` if that is impossible, `Unroutable` if a later try may succeed.
"""


class _Delay:
    """The growing delay after repeated failures."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    def failed(self) -> float:
        """Count a failure; return the seconds until the next attempt."""
        seconds = backoff(self._failures, first=FIRST_DELAY, longest=MAX_DELAY)
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
    """A relay. It waits while the broker is unavailable; a refused request delays only its connection.

    `what` says whether the outbox holds requests or events. Requests are completed by `complete`, each right
    before it is sent.
    """

    def __init__(
        self,
        outbox: Outbox,
        publisher: Publisher,
        wakeups: Waiter,
        *,
        what: Literal["request", "event"] = "request",
        complete: Completion | None = None,
        poll: float = _POLL_SECONDS,
    ) -> None:
        """Publish nothing before `run`. Read the outbox after `poll` seconds even without a notification."""
        self._poll = poll
        self._what = what
        self._complete = complete
        self._outbox = outbox
        self._publisher = publisher
        self._wakeups = wakeups
        self._window = asyncio.Semaphore(_WINDOW)
        self._held: dict[str, _Delay] = {}
        self._outage: _Delay | None = None
        self._logged: type[Exception] | None = None
        self._is_ending = False
        self._is_leading = True
        # Whether it is one of those that are counted as leading.
        self._is_counted = False
        # The outage on record; at first whatever an earlier process has recorded.
        self._shown: str | None = "unknown"
        # The broker's answers that are not in the store yet.
        self._published: list[str] = []
        self._refused: dict[str, str] = {}
        self._undeliverable: dict[str, str] = {}
        # Messages in flight when a channel or connection ended, with the number of times each was alone.
        self._suspects: dict[str, int] = {}

    async def run(self) -> None:
        """Relay until cancelled; errors do not end it.

        When cancelled, wait for the confirms of the messages in flight, and record them, before returning.
        """
        RELAYS_LEADING.labels(self._what).inc(0)
        try:
            while True:
                was_leading = self._is_leading
                try:
                    # First record what an earlier failure left unrecorded, or it would be published again.
                    await self._record()
                    # Also with nothing to publish, so that consumers find their queue from the first start.
                    await self._publisher.open()
                    BROKER_CONNECTED.labels(self._what).set(1)
                    is_more = await self._batch()
                except (PublishError, StoreUnavailable) as error:
                    if isinstance(error, PublishError):
                        BROKER_CONNECTED.labels(self._what).set(0)
                        BROKER_FAILURES.labels(self._what).inc()
                        await self._show(str(error))
                    await asyncio.sleep(self._failed(error))
                except Exception:
                    log.exception("the relay failed; it continues")
                    await asyncio.sleep(_POLL_SECONDS)
                else:
                    if self._is_leading or was_leading:
                        await self._show(None)
                    self._succeeded()
                    if not self._is_leading:
                        # Notifications are for the leader: each would cost statements in every process.
                        await asyncio.sleep(self._poll)
                    elif not is_more:
                        await self._wakeups.wait(self._idle_seconds())
        finally:
            self._lead(False)
            await self._close()

    async def _close(self) -> None:
        """Record the last confirms, and close the connection to the broker."""
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
        """Publish one batch; return whether more messages may be publishable now."""
        held = {connection for connection, delay in self._held.items() if not delay.is_over}
        if len(held) >= _MAX_HELD:
            return False
        requests = await self._outbox.pending(limit=_BATCH_SIZE, without=held)
        self._lead(requests is not None)
        if requests is None:
            # The process that relays now records outages too, so this process's record may be stale.
            self._shown = "unknown"
            return False
        lanes: dict[str, list[Stored]] = {}
        for request in requests:
            lanes.setdefault(request.connection, []).append(request)
        size = sum(len(request.body) for request in requests)
        is_more = len(requests) == _BATCH_SIZE or size >= READ_BYTES
        if not is_more:
            self._forget_all_but(requests, held)
        suspects = [lane[0] for lane in lanes.values() if lane[0].id in self._suspects]
        # An outage ends each lane separately: confirmed messages are recorded, the rest is read again.
        ends = await self._to_the_end(
            asyncio.ensure_future(self._one_by_one(suspects))
            if suspects
            else asyncio.gather(*map(self._publish, lanes.values()), return_exceptions=True)
        )
        # After a refusal the broker closes the channel. That is not an outage: unsent messages are sent next.
        is_refusal = bool(self._undeliverable) or any(isinstance(end, Ambiguous) for end in ends)
        await self._record()
        for end in ends:
            if isinstance(end, BaseException) and not (is_refusal and _is_side_effect(end)):
                raise end
        return is_more or is_refusal or bool(suspects) or not all(ends)

    def _lead(self, is_leading: bool) -> None:
        self._is_leading = is_leading
        RELAYS_LEADING.labels(self._what).inc(is_leading - self._is_counted)
        self._is_counted = is_leading

    def _forget_all_but(self, requests: Sequence[Stored], held: Collection[str]) -> None:
        """Forget the other delays and suspects: apart from held connections, `requests` are all that wait."""
        lanes = {request.connection for request in requests}
        # A connection without pending messages, perhaps a deleted one, needs no delay any more.
        self._held = {name: delay for name, delay in self._held.items() if name in held or name in lanes}
        if not held:
            waiting = {request.id for request in requests}
            self._suspects = {id_: losses for id_, losses in self._suspects.items() if id_ in waiting}

    async def _to_the_end(
        self, publishing: asyncio.Future[list[bool | BaseException]]
    ) -> list[bool | BaseException]:
        """Wait for a batch; when cancelled, wait up to `_FLUSH_SECONDS` for outstanding confirms."""
        try:
            return await asyncio.shield(publishing)
        except asyncio.CancelledError:
            # A message whose confirm is not received would be sent again.
            self._is_ending = True
            await asyncio.wait([publishing], timeout=_FLUSH_SECONDS)
            publishing.cancel()
            await asyncio.wait([publishing])
            raise

    async def _one_by_one(self, suspects: Sequence[Stored]) -> list[bool | BaseException]:
        """Publish each message alone, to find which of them ended the channel or the connection."""
        try:
            for suspect in sorted(suspects, key=lambda suspect: self._suspects[suspect.id]):
                await self._publisher.open()
                await self._publish([suspect], is_alone=True)
        except PublishError as error:
            return [error]
        return [True]

    async def _publish(self, lane: Sequence[Stored], *, is_alone: bool = False) -> bool:
        """Publish a connection's requests one after another, up to the first that is refused.

        Return False if the time ran out before. `is_alone` says that nothing else is in flight.
        """
        until = time.monotonic() + _BATCH_SECONDS
        for stored in lane:
            async with self._window:
                request = await self._completed(stored, until=until)
                # Only with a place in the window: by now another relay may lead, and this batch be stale.
                if self._is_ending or time.monotonic() > until:
                    return False
                if request is None or not await self._send(request, is_alone=is_alone):
                    break
            self._published.append(request.id)
            if isinstance(request, StoredRequest):
                since = request.republished_at or request.planned_at
                stage("publish", (datetime.now(UTC) - since).total_seconds())
            self._held.pop(request.connection, None)
            self._suspects.pop(request.id, None)
        return True

    async def _send(self, request: Stored, *, is_alone: bool) -> bool:
        """Publish a message; return whether the broker confirmed it. Raises `PublishError`."""
        try:
            await self._publisher.publish(request)
        except Unroutable as error:
            self._refuse(request, str(error))
        except Undeliverable as error:
            self._give_up(request, str(error))
        except (Ambiguous, Interrupted) as error:
            if not self._is_cause(request, is_alone=is_alone):
                raise
            why = "the connection ends each time this message is sent alone"
            self._refuse(request, f"{why}: {error}")
        except PublishError:
            raise
        except Exception as error:
            # A bug, here or in the library: it delays this connection only.
            log.exception("a message could not be sent", what=self._what, id=request.id)
            self._refuse(request, f"the message could not be sent ({type(error).__name__})")
        else:
            return True
        return False

    async def _completed(self, stored: Stored, *, until: float) -> Stored | None:
        """Return the message to send; None if it cannot be completed, and so not be sent, at present."""
        if self._complete is None or isinstance(stored, StoredEvent) or time.monotonic() > until:
            return stored
        try:
            return await self._complete(stored)
        except Undeliverable as error:
            self._give_up(stored, str(error))
        except Unroutable as error:
            self._refuse(stored, str(error), event="message not ready")
        except Exception as error:
            # A bug, here or in a library: it delays this connection only.
            log.exception("a message could not be completed", what=self._what, id=stored.id)
            self._refuse(stored, f"the message could not be completed ({type(error).__name__})")
        return None

    def _is_cause(self, request: Stored, *, is_alone: bool) -> bool:
        """Mark a message to be sent alone next time; return whether it seems to have ended the connection.

        A broker may disconnect by chance: only a message that was alone several times counts as the cause.
        """
        losses = self._suspects.get(request.id, 0) + is_alone
        self._suspects[request.id] = losses
        return losses >= _MAX_LOSSES

    def _give_up(self, request: Stored, reason: str) -> None:
        """Give up on an undeliverable message, so that its connection's next message is sent."""
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

    def _refuse(self, request: Stored, reason: str, *, event: str = "message refused by the broker") -> None:
        """Put a connection on hold for a while; its later requests wait in the store behind this one."""
        seconds = self._held.setdefault(request.connection, _Delay()).failed()
        if reason == request.reason:
            return
        self._refused[request.id] = reason
        log.warning(
            event,
            what=self._what,
            id=request.id,
            connection=request.connection,
            next_try_in_s=round(seconds, 1),
            reason=reason,
        )

    async def _record(self) -> None:
        """Record the broker's answers; keep them for the next attempt if the store is unavailable."""
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
        """Record an outage or its end, for the API and the dashboard; the store may be unavailable too."""
        if outage == self._shown:
            return
        with suppress(StoreUnavailable):
            if await self._outbox.record_outage(outage):
                self._shown = outage

    def _failed(self, error: PublishError | StoreUnavailable) -> float:
        """Log the start of each kind of outage; return the seconds to wait."""
        if self._outage is None:
            self._outage = _Delay()
        if self._logged is not type(error):
            self._logged = type(error)
            if isinstance(error, StoreUnavailable):
                log.warning("the relay is waiting for the store", reason=str(error))
            else:
                log.warning(
                    "the broker is unavailable; messages wait in the store",
                    what=self._what,
                    reason=str(error),
                )
        return self._outage.failed()

    def _succeeded(self) -> None:
        if self._outage is not None:
            self._outage = self._logged = None
            log.info("the relay continues")

    def _idle_seconds(self) -> float:
        """Return how long to wait for a notification."""
        return min([self._poll, *(delay.seconds_left for delay in self._held.values())])


def _is_side_effect(error: BaseException) -> bool:
    """Return whether an error only reflects that another message's refusal closed the channel."""
    return isinstance(error, Ambiguous | BrokerUnavailable) and not isinstance(error, Interrupted)
