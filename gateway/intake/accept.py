"""Durable accept: many deliveries, one transaction, one sync to disk.

A single thread takes whatever waits, records it as one batch and only then tells the waiting requests. It
never ends by itself: what goes wrong is told to every request that waits for it, and shows in `healthy`.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from gateway.errors import StoreUnavailable
from gateway.store import deliveries
from gateway.store.database import Database
from gateway.store.deliveries import Arrival, Receipt

log = structlog.get_logger()

# What one transaction takes at most: enough to share the sync, small enough to bound the wait of the first.
_MOST_ARRIVALS = 256
_MOST_BYTES = 16 * 1024 * 1024
_MOST_UPDATES = 10_000

# The interpreter's own 5 ms would keep the writer waiting that long behind the event loop, statement by
# statement. To be set for the process with sys.setswitchinterval.
SWITCH_SECONDS = 0.0005

# For how long one failure to write makes the door unready; long enough to be seen by a probe.
_SECONDS_UNREADY = 10.0


@dataclass(slots=True)
class _Waiting:
    arrival: Arrival
    receipt: asyncio.Future[Receipt]


class Accepter:
    """The writer of deliveries. `rings` is called on the event loop after something new was accepted."""

    def __init__(self, database: Database, *, rings: Callable[[], None]) -> None:
        """Take deliveries as soon as `start` was called."""
        self._database = database
        self._rings = rings
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="accepter", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failed_at: float | None = None

    @property
    def healthy(self) -> bool:
        """Say whether deliveries can be written: no write has failed of late, and the writer lives."""
        recently = self._failed_at is not None and time.monotonic() - self._failed_at < _SECONDS_UNREADY
        return self._thread.is_alive() and not recently

    def start(self) -> None:
        """Begin to write, for requests of the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Write what waits, then end."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    async def accept(self, arrival: Arrival) -> Receipt:
        """Record a delivery; it is on disk when this returns.

        Raises `StoreUnavailable` where it could not be recorded; then nothing of it was, its id included.
        """
        if self._loop is None or not self._thread.is_alive():
            raise StoreUnavailable("the writer of deliveries does not run")
        receipt: asyncio.Future[Receipt] = self._loop.create_future()
        self._queue.put(_Waiting(arrival, receipt))
        return await receipt

    def _write(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, ends = self._drain(first)
            self._record(batch)
            if ends:
                return

    def _drain(self, first: _Waiting) -> tuple[list[_Waiting], bool]:
        """Return `first` and what waits behind it, and whether the end was asked for."""
        batch = [first]
        size, updates = len(first.arrival.body), len(first.arrival.updates)
        while len(batch) < _MOST_ARRIVALS and size < _MOST_BYTES and updates < _MOST_UPDATES:
            try:
                waiting = self._queue.get_nowait()
            except queue.Empty:
                break
            if waiting is None:
                return batch, True
            batch.append(waiting)
            size += len(waiting.arrival.body)
            updates += len(waiting.arrival.updates)
        return batch, False

    def _record(self, batch: Sequence[_Waiting]) -> None:
        try:
            with self._database.writing() as transaction:
                receipts = deliveries.record(transaction, [waiting.arrival for waiting in batch])
        except StoreUnavailable as error:
            if self.healthy:
                log.error("deliveries are refused: they cannot be stored", reason=str(error))
            self._failed_at = time.monotonic()
            self._on_loop(_refuse, batch, str(error))
        except Exception as error:
            # Whatever one delivery does, it ends neither the writer nor the deliveries beside it.
            if len(batch) > 1:
                for waiting in batch:
                    self._record([waiting])
            else:
                log.exception("delivery cannot be recorded", connection=batch[0].arrival.connection)
                self._on_loop(_refuse, batch, f"the delivery cannot be recorded: {type(error).__name__}")
        else:
            self._failed_at = None
            self._on_loop(_tell, batch, receipts, self._rings)

    def _on_loop(self, callback: Callable[..., None], *arguments: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *arguments)


def _tell(batch: Sequence[_Waiting], receipts: Sequence[Receipt], rings: Callable[[], None]) -> None:
    for waiting, receipt in zip(batch, receipts, strict=True):
        if not waiting.receipt.done():
            waiting.receipt.set_result(receipt)
    if any(receipt.verdict == "accepted" for receipt in receipts):
        rings()


def _refuse(batch: Sequence[_Waiting], reason: str) -> None:
    for waiting in batch:
        if not waiting.receipt.done():
            waiting.receipt.set_exception(StoreUnavailable(reason))
