"""Durable accept: many deliveries, one transaction, one sync to disk.

While one batch is being written, whatever arrives becomes the next one. Requests are told only
once theirs is on disk. What goes wrong is told to every request that waits for it, and shows in `healthy`.
"""

import asyncio
import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from gateway.errors import StoreUnavailable
from gateway.metrics import STAGE
from gateway.store import deliveries
from gateway.store.database import Database
from gateway.store.deliveries import Arrival, Receipt

log = structlog.get_logger()

# What one transaction takes at most: enough to share the sync, small enough to bound the wait of the first.
_MOST_ARRIVALS = 128
_MOST_BYTES = 16 * 1024 * 1024
_MOST_MOVES = 10_000

_ACCEPT = STAGE.labels("accept")

# For how long one failure to write makes the door unready; long enough to be seen by a probe.
_SECONDS_UNREADY = 10.0


@dataclass(slots=True)
class _Waiting:
    arrival: Arrival
    receipt: asyncio.Future[Receipt]


def prepare_interpreter() -> None:
    """Set the interpreter up for a process that serves the door, once everything is loaded.

    By itself it would look for garbage among all that was loaded at the start, again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


class Accepter:
    """The writer of deliveries. `rings` is called after something new was accepted."""

    def __init__(self, database: Database, *, rings: Callable[[], None]) -> None:
        """Take deliveries as soon as `start` was called."""
        self._database = database
        self._rings = rings
        self._waiting: deque[_Waiting] = deque()
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

    async def accept(self, arrival: Arrival) -> Receipt:
        """Record a delivery; it is on disk when this returns.

        Raises `StoreUnavailable` where it could not be recorded; then nothing of it was, its id included.
        """
        if self._writer is None or self._writer.done():
            raise StoreUnavailable("the writer of deliveries does not run")
        started = time.monotonic()
        receipt: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(arrival, receipt))
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
            batch = self._take()
            outcomes = await self._record([waiting.arrival for waiting in batch])
            self._tell(batch, outcomes)

    def _take(self) -> list[_Waiting]:
        """Return what waits, the first at least, as far as it fits into one transaction."""
        batch: list[_Waiting] = []
        size = updates = 0
        while self._waiting and len(batch) < _MOST_ARRIVALS and size < _MOST_BYTES and updates < _MOST_MOVES:
            batch.append(self._waiting.popleft())
            size += len(batch[-1].arrival.body)
            updates += len(batch[-1].arrival.updates)
        return batch

    async def _record(self, arrivals: Sequence[Arrival]) -> Sequence[Receipt | StoreUnavailable]:
        """Record a batch. Whatever one delivery does, it does not end those beside it."""
        try:
            judge = partial(deliveries.judge, arrivals=arrivals)
            return (await self._database.write_inline(judge, deliveries.keep)).receipts
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
            if self.healthy:
                log.error("deliveries are refused: they cannot be stored", reason=str(failure))
            self._failed_at = time.monotonic()
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.receipt.done():
                continue  # the request has ended meanwhile; what it delivered is kept all the same
            if isinstance(outcome, StoreUnavailable):
                waiting.receipt.set_exception(StoreUnavailable(str(outcome)))
            else:
                waiting.receipt.set_result(outcome)
        if any(isinstance(outcome, Receipt) and outcome.verdict == "accepted" for outcome in outcomes):
            self._rings()
