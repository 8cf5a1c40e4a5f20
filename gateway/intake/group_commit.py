"""Durable accept: many deliveries, one transaction, one sync to disk.

While one batch is being written, whatever arrives becomes the next one. Requests are told only
once theirs is on disk. What goes wrong is told to every request that waits for it, and shows in `healthy`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from gateway.errors import StoreUnavailable
from gateway.metrics import STAGE
from gateway.store import accept
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.database import Database

log = structlog.get_logger()

# What one transaction takes at most: enough to share the sync, small enough to bound the wait of the first.
_MAX_ARRIVALS = 128
_MAX_BYTES = 16 * 1024 * 1024
_MAX_MOVES = 10_000

_ACCEPT = STAGE.labels("accept")

# A request gets its answer before its provider gives up, which the first do after 10 seconds.
_ANSWER_TIMEOUT = 4.5
_CHECK_SECONDS = 0.25

# For how long one failure to write makes the door unready; long enough to be seen by a probe.
_SECONDS_UNREADY = 10.0


@dataclass(slots=True)
class _Waiting:
    """A delivery whose request waits until this time of the event loop; given up when that has come."""

    arrival: NewDelivery
    receipt: asyncio.Future[Receipt]
    deadline: float
    is_given_up: bool = False


class DeliveryWriter:
    """The writer of deliveries. `notify` is called after something new was accepted."""

    def __init__(self, database: Database, *, notify: Callable[[], None]) -> None:
        """Take deliveries as soon as `start` was called."""
        self._database = database
        self._notify = notify
        self._waiting: deque[_Waiting] = deque()
        self._batch: list[_Waiting] = []
        self._is_checking = False
        self._news = asyncio.Event()
        self._ending = False
        self._writer: asyncio.Task[None] | None = None
        self._failed_at: float | None = None

    @property
    def healthy(self) -> bool:
        """Say whether deliveries can be written: no write has failed of late, and the writer lives."""
        recently = self._failed_at is not None and time.monotonic() - self._failed_at < _SECONDS_UNREADY
        return self._writer is not None and not self._writer.done() and not recently

    def start(self) -> None:
        """Begin to write, for requests of the running event loop."""
        self._writer = asyncio.create_task(self._write(), name="accepter")

    async def stop(self) -> None:
        """Write what waits, then end."""
        self._ending = True
        self._news.set()
        if self._writer is not None:
            await self._writer

    async def accept(self, arrival: NewDelivery, *, seconds: float = _ANSWER_TIMEOUT) -> Receipt:
        """Record a delivery within so many seconds; it is on disk when this returns.

        Raises `StoreUnavailable` where it could not be recorded; then nothing of it was, its id included. One
        that is being written when its time is over may still be: what the provider then sends again is a
        duplicate.
        """
        if self._writer is None or self._writer.done():
            raise StoreUnavailable("the writer of deliveries does not run")
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        receipt: asyncio.Future[Receipt] = loop.create_future()
        self._waiting.append(_Waiting(arrival, receipt, loop.time() + seconds))
        if not self._is_checking:
            self._is_checking = True
            loop.call_later(_CHECK_SECONDS, self._give_up, loop)
        self._news.set()
        told = await receipt
        _ACCEPT.observe(time.monotonic() - started)
        return told

    async def _write(self) -> None:
        """Write batch after batch; what arrives meanwhile is the next one."""
        while self._waiting or not self._ending:
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
                continue
            self._batch = self._take()
            if not self._batch:
                continue
            outcomes = await self._record([waiting.arrival for waiting in self._batch])
            self._tell(self._batch, outcomes)
            self._batch = []

    def _take(self) -> list[_Waiting]:
        """Return what waits, the first at least, as far as it fits into one transaction.

        What was given up meanwhile is left out, so that its provider's next try is the first.
        """
        batch: list[_Waiting] = []
        size = updates = 0
        while self._waiting and len(batch) < _MAX_ARRIVALS and size < _MAX_BYTES and updates < _MAX_MOVES:
            waiting = self._waiting.popleft()
            if waiting.is_given_up:
                continue
            batch.append(waiting)
            size += len(batch[-1].arrival.body)
            updates += len(batch[-1].arrival.updates)
        return batch

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer those whose time is over; one timer looks after all."""
        now = loop.time()
        late = [
            one for one in (*self._batch, *self._waiting) if not one.receipt.done() and one.deadline <= now
        ]
        for waiting in late:
            waiting.is_given_up = True
            waiting.receipt.set_exception(StoreUnavailable("the database does not answer in time"))
        if late:
            self._failed("the database does not answer in time")
        self._is_checking = bool(self._batch or self._waiting)
        if self._is_checking:
            loop.call_later(_CHECK_SECONDS, self._give_up, loop)

    def _failed(self, reason: str) -> None:
        if self.healthy:
            log.error("deliveries are refused: they cannot be stored", reason=reason)
        self._failed_at = time.monotonic()

    async def _record(self, arrivals: Sequence[NewDelivery]) -> Sequence[Receipt | StoreUnavailable]:
        """Record a batch. Whatever one delivery does, it does not end those beside it."""
        try:
            judge = partial(accept.decide, batch=arrivals)
            return (await self._database.write_inline(judge, accept.write)).receipts
        except StoreUnavailable as error:
            return [error] * len(arrivals)
        except Exception as error:
            if len(arrivals) > 1:
                return [outcome for arrival in arrivals for outcome in await self._record([arrival])]
            log.exception("delivery cannot be recorded", connection=arrivals[0].connection)
            return [StoreUnavailable(f"the delivery cannot be recorded: {type(error).__name__}")]

    def _tell(self, batch: Sequence[_Waiting], outcomes: Sequence[Receipt | StoreUnavailable]) -> None:
        failure = next((outcome for outcome in outcomes if isinstance(outcome, StoreUnavailable)), None)
        if failure is None:
            self._failed_at = None
        else:
            self._failed(str(failure))
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.receipt.done():
                continue  # the request has ended meanwhile; what it delivered is kept all the same
            if isinstance(outcome, StoreUnavailable):
                waiting.receipt.set_exception(StoreUnavailable(str(outcome)))
            else:
                waiting.receipt.set_result(outcome)
        if any(isinstance(outcome, Receipt) and outcome.verdict == "accepted" for outcome in outcomes):
            self._notify()
