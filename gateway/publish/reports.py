"""Takes the runners' reports from the queue at the broker into the store.

A report is acknowledged once it is stored, so it is stored at least once; repetitions and any order do no
harm. Any number of processes may take reports from the queue side by side.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection
from aiormq.abc import DeliveredMessage

from gateway.backoff import backoff
from gateway.errors import Invalid, PublishError, StoreUnavailable
from gateway.messages.cdevents import read_any_report
from gateway.messages.execution_status import ExecutionStatus
from gateway.publish.brokers import Brokers, close
from gateway.publish.execution_spans import record_runs
from gateway.publish.topology import Topology
from gateway.store import runs
from gateway.store.database import Database

log = structlog.get_logger()

# How many reports are stored in one transaction, and how many the broker sends before they are acknowledged.
_BATCH = 500
_PREFETCH = 2 * _BATCH
_FIRST_DELAY = 0.5
_MAX_DELAY = 30.0
_STORE_PAUSE = 1.0
_GATHER_SECONDS = 0.01
_STRUCTURED = "application/cloudevents+json"


class Hearing:
    """Since when this process has received reports without a break; at first it does not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Receive none yet."""
        self._clock = clock
        self._since: float | None = None

    def begin(self) -> None:
        """Record that reports are received from now on, unless they are already."""
        if self._since is None:
            self._since = self._clock()

    def end(self) -> None:
        """Record that no reports are received."""
        self._since = None

    def has_lasted(self, seconds: float) -> bool:
        """Return whether reports have been received for so long."""
        return self._since is not None and self._clock() - self._since >= seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportConsumer:
    """Stores reports. Calls `notify` after a run has changed; `hearing` has whether it receives reports."""

    database: Database
    brokers: Brokers
    topology: Topology
    hearing: Hearing
    notify: Callable[[], None]

    async def run(self) -> None:
        """Work until cancelled; log the beginning and the end of each outage."""
        failures = 0
        while True:
            try:
                intake = await self.brokers.open(self._begin)
            except PublishError as error:
                if not failures:
                    log.warning("reports of runners are not received", reason=str(error))
                await asyncio.sleep(backoff(failures, first=_FIRST_DELAY, longest=_MAX_DELAY))
                failures += 1
                continue
            if failures:
                log.info("reports of runners are received again")
            failures = 0
            self.hearing.begin()
            try:
                await self._take(intake)
            except Exception:
                # What was not acknowledged is sent again; the broker counts how often, and gives it up.
                if intake.is_open:
                    log.exception("reports of runners cannot be stored")
                    await asyncio.sleep(_STORE_PAUSE)
            finally:
                self.hearing.end()
                await close(intake.connection)

    async def _begin(self, connection: AbstractConnection) -> "_Intake":
        """Begin to consume on a new connection; close it if that fails."""
        try:
            await self.topology.establish_reports(connection)
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=_PREFETCH)
            intake = _Intake(connection, channel)
            # Of the library beneath: a message of aio-pika takes as long to make as its report to store.
            underlay = await channel.get_underlay_channel()
            await underlay.basic_consume(self.topology.report_queue, intake.receive)
        except BaseException:
            await close(connection)
            raise
        return intake

    async def _take(self, intake: "_Intake") -> None:
        """Store what arrives until the connection is lost."""
        while messages := await intake.next_batch(_BATCH):
            reports, last = [], None
            for message in messages:
                try:
                    content_type = message.header.properties.content_type or ""
                    is_structured = content_type.startswith(_STRUCTURED)
                    reports.append(read_any_report(message.body, is_structured=is_structured))
                    last = message
                except Invalid as error:
                    log.warning("a report cannot be read", routing_key=message.routing_key, reason=str(error))
                    await message.channel.basic_reject(_tag(message), requeue=False)
            await self._store(reports)
            if last is not None:
                # All before it are stored, or rejected.
                await last.channel.basic_ack(_tag(last), multiple=True)

    async def _store(self, reports: Sequence[ExecutionStatus]) -> None:
        """Store reports, however long the database is unavailable: the broker keeps the others meanwhile."""
        while reports:
            try:
                outcomes = await self.database.write(runs.record, reports=reports, now=datetime.now(UTC))
            except StoreUnavailable:
                self.hearing.end()
                await asyncio.sleep(_STORE_PAUSE)  # the database logs it once for all tasks
                continue
            self.hearing.begin()
            record_runs(outcome.ended for outcome in outcomes)
            if any(outcome.is_change for outcome in outcomes):
                self.notify()
            return


class _Intake:
    """The messages of one connection that have arrived."""

    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self.connection = connection
        self.is_open = True
        # A reference, because aio-pika closes a channel without references.
        self._channel = channel
        self._arrived: asyncio.Queue[DeliveredMessage | None] = asyncio.Queue()
        channel.close_callbacks.add(self._on_close)
        connection.close_callbacks.add(self._on_close)

    async def receive(self, message: DeliveredMessage) -> None:
        """Take a message from the library."""
        self._arrived.put_nowait(message)

    async def next_batch(self, most: int) -> list[DeliveredMessage]:
        """Return up to `most` messages, soon after there is one; none once the connection is lost.

        Wait for others as long as they keep arriving: a transaction for each few would cost more.
        """
        batch: list[DeliveredMessage] = []
        message = await self._arrived.get()
        while message is not None:
            batch.append(message)
            if len(batch) < most and self._arrived.empty():
                await asyncio.sleep(_GATHER_SECONDS)
            if len(batch) == most or self._arrived.empty():
                return batch
            message = self._arrived.get_nowait()
        # What is in `batch` was not acknowledged, and cannot be any more.
        return []

    def _on_close(self, _closed: object, _error: BaseException | None) -> None:
        self.is_open = False
        self._arrived.put_nowait(None)


def _tag(message: DeliveredMessage) -> int:
    """Return the number of a message on its channel, which every message from a queue has."""
    tag = message.delivery_tag
    assert tag is not None  # noqa: S101 - the library's type includes returned messages
    return tag
