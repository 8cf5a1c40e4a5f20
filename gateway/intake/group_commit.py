"""Group commit: many deliveries in one transaction, with one sync to disk.

Deliveries that arrive while a batch is being written form the next batch. A request is answered only once its
delivery is on disk. If a write fails, every request of the batch gets the error, and `healthy` turns false.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from gateway.errors import StoreUnavailable
from gateway.metrics import stage
from gateway.store import accept
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.database import Database

log = structlog.get_logger()

# Limits of one transaction: large enough to share the sync, small enough to bound the first one's wait.
_MAX_DELIVERIES = 128
_MAX_BYTES = 16 * 1024 * 1024
_MAX_UPDATES = 10_000

# The endpoint answers before the provider gives up; the least patient providers do so after 10 seconds.
_ANSWER_TIMEOUT = 4.5
_CHECK_SECONDS = 0.25

# How long a failed write makes the process unready: long enough for a probe to notice.
_UNREADY_SECONDS = 10.0


@dataclass(slots=True)
class _Waiting:
    """A delivery whose request waits until `deadline`, in the event loop's time, and is then given up."""

    delivery: NewDelivery
    receipt: asyncio.Future[Receipt]
    deadline: float
    is_given_up: bool = False


class DeliveryWriter:
    """Writes deliveries. Calls `notify` after it has recorded one that makes work."""

    def __init__(self, database: Database, *, notify: Callable[[], None]) -> None:
        """Accept deliveries once `start` has been called."""
        self._database = database
        self._notify = notify
        self._waiting: deque[_Waiting] = deque()
        self._batch: list[_Waiting] = []
        self._is_checking = False
        self._wakeup = asyncio.Event()
        self._is_ending = False
        self._writer: asyncio.Task[None] | None = None
        self._failed_at: float | None = None

    @property
    def healthy(self) -> bool:
        """Return whether deliveries can be written: the writer runs, and no write has failed recently."""
        recently = self._failed_at is not None and time.monotonic() - self._failed_at < _UNREADY_SECONDS
        return self._writer is not None and not self._writer.done() and not recently

    def start(self) -> None:
        """Start to write, in the running event loop."""
        self._writer = asyncio.create_task(self._write(), name="delivery writer")

    async def stop(self) -> None:
        """Write the deliveries that are waiting, then stop."""
        self._is_ending = True
        self._wakeup.set()
        if self._writer is not None:
            await self._writer

    async def accept(self, delivery: NewDelivery, *, seconds: float = _ANSWER_TIMEOUT) -> Receipt:
        """Record a delivery within `seconds`; it is on disk when this returns.

        Raises `StoreUnavailable` if the delivery could not be recorded; then nothing of it is stored, not
        even its id. A delivery that is being written when its time is up may still be stored: if the provider
        sends it again, that is a duplicate.
        """
        if self._writer is None or self._writer.done():
            raise StoreUnavailable("the writer of deliveries is not running")
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        receipt: asyncio.Future[Receipt] = loop.create_future()
        self._waiting.append(_Waiting(delivery, receipt, loop.time() + seconds))
        if not self._is_checking:
            self._is_checking = True
            loop.call_later(_CHECK_SECONDS, self._give_up, loop)
        self._wakeup.set()
        result = await receipt
        stage("accept", time.monotonic() - started)
        return result

    async def _write(self) -> None:
        """Write one batch after another."""
        while self._waiting or not self._is_ending:
            if not self._waiting:
                self._wakeup.clear()
                await self._wakeup.wait()
                continue
            self._batch = self._take()
            if not self._batch:
                continue
            outcomes = await self._record([waiting.delivery for waiting in self._batch])
            self._answer(self._batch, outcomes)
            self._batch = []

    def _take(self) -> list[_Waiting]:
        """Return the waiting deliveries that fit into one transaction, but at least one.

        Skip those given up meanwhile, so that the provider's retry counts as the first attempt.
        """
        batch: list[_Waiting] = []
        size = updates = 0
        while self._waiting and len(batch) < _MAX_DELIVERIES and size < _MAX_BYTES and updates < _MAX_UPDATES:
            waiting = self._waiting.popleft()
            if waiting.is_given_up:
                continue
            batch.append(waiting)
            size += len(batch[-1].delivery.body)
            updates += len(batch[-1].delivery.updates)
        return batch

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """Fail the requests whose deadline has passed; one timer serves all of them."""
        now = loop.time()
        late = [
            waiting
            for waiting in (*self._batch, *self._waiting)
            if not waiting.receipt.done() and waiting.deadline <= now
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

    async def _record(self, batch: Sequence[NewDelivery]) -> Sequence[Receipt | StoreUnavailable]:
        """Record a batch. A delivery that fails does not affect the others in its batch."""
        try:
            decide = partial(accept.decide, batch=batch)
            return (await self._database.write_inline(decide, accept.write)).receipts
        except StoreUnavailable as error:
            return [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:
                return [outcome for delivery in batch for outcome in await self._record([delivery])]
            log.exception("delivery cannot be recorded", connection=batch[0].connection)
            return [StoreUnavailable(f"the delivery cannot be recorded: {type(error).__name__}")]

    def _answer(self, batch: Sequence[_Waiting], outcomes: Sequence[Receipt | StoreUnavailable]) -> None:
        failure = next((outcome for outcome in outcomes if isinstance(outcome, StoreUnavailable)), None)
        if failure is None:
            self._failed_at = None
        else:
            self._failed(str(failure))
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.receipt.done():
                continue  # the request has ended meanwhile; its delivery is stored all the same
            if isinstance(outcome, StoreUnavailable):
                waiting.receipt.set_exception(StoreUnavailable(str(outcome)))
            else:
                waiting.receipt.set_result(outcome)
        if any(map(_makes_work, batch, outcomes)):
            self._notify()


def _makes_work(waiting: _Waiting, outcome: Receipt | StoreUnavailable) -> bool:
    """Return whether workers have to do something about a delivery."""
    if not isinstance(outcome, Receipt):
        return False
    return outcome.verdict == "accepted" or waiting.delivery.seen is not None
