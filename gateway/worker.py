"""The worker: takes accepted ref updates, one connection at a time, through fetch and plan.

It knows the order of the steps and what becomes of each failure. How a step is done, its collaborators know.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog

from gateway.backoff import backoff
from gateway.errors import FetchError, Gone, NotFound, ObjectUnusable, StoreUnavailable
from gateway.metrics import SETTLED, STAGE
from gateway.store.connections import Connection
from gateway.store.doorbell import Waiter
from gateway.store.work import LeaseLost, PendingUpdate, Settlement

log = structlog.get_logger()

LEASE = timedelta(seconds=60)
_RENEW_SECONDS = 20.0
_POLL_SECONDS = 1.0
_TELL_SECONDS = 2.0
# Of requests that are planned, and wait in memory to be recorded together.
_MOST_BYTES = 16 * 1024 * 1024
# How many ref updates of a connection one fetch serves, and for how long they are planned before it is the
# turn of others: the rest finds what it needs in the mirror.
_AT_ONCE = 200
_TURN_SECONDS = 10.0
_FIRST_DELAY = 1.0
_LONGEST_DELAY = 900.0
# A webhook can be faster than the provider's own replication; so long a missing commit is looked for again.
_PATIENCE = timedelta(seconds=10)
# A remote that has not answered for so long is given up; the reason stays on each of its ref updates.
_GIVE_UP_AFTER = timedelta(days=3)


class _Deleted(Exception):
    """The connection is no more."""


class Queue(Protocol):
    """Pending ref updates under leases. A call may raise `StoreUnavailable`, the last four `LeaseLost`."""

    async def claim(self, *, owner: str, now: datetime, until: datetime) -> str | None:
        """Take the lease on a connection with due work."""

    async def connection(self, connection: str) -> Connection:
        """Return a connection; raises `NotFound`."""

    async def pending(self, connection: str, *, limit: int) -> Sequence[PendingUpdate]:
        """Return the pending updates in order of arrival."""

    async def attempts(self, connection: str) -> int:
        """Return how many tries in a row have failed."""

    async def tell(self, updates: Sequence[PendingUpdate], reason: str) -> None:
        """Let updates that are being worked on say how it goes."""

    async def renew(self, connection: str, *, owner: str, until: datetime) -> None:
        """Keep the lease for longer."""

    async def settle(
        self, connection: str, settlements: Sequence[Settlement], *, owner: str, now: datetime
    ) -> None:
        """Record ends and requests in one transaction."""

    async def release(self, connection: str, *, owner: str, now: datetime) -> None:
        """Give the lease back."""

    async def postpone(
        self,
        connection: str,
        updates: Sequence[PendingUpdate],
        *,
        owner: str,
        due_at: datetime,
        reason: str,
    ) -> None:
        """Give the lease back until a later try; the updates tell why."""


class Steps(Protocol):
    """What is done with ref updates between the store and the store."""

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> None:
        """Bring the objects of these updates into the mirror; raises `FetchError`.

        `progress` is told how it goes, in any thread.
        """

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Read the commit and say what it asks for; raises `FetchError`, most often `Gone`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker. `rings` is called when there is something to publish; any number may run side by side.

    `announce` adds to each end of a ref update what is to be told of it.
    After `turn` seconds a connection with more to do waits for its next turn.
    """

    name: str
    queue: Queue
    steps: Steps
    news: Waiter
    rings: Callable[[], None]
    announce: Callable[[Connection, Settlement], Settlement] = lambda _connection, settlement: settlement
    turn: float = _TURN_SECONDS

    async def run(self) -> None:
        """Work until cancelled. Whatever fails is told on the delivery or in the log, and work goes on."""
        while True:
            connection_id = None
            try:
                connection_id = await self.queue.claim(owner=self.name, now=_now(), until=_now() + LEASE)
                if connection_id is not None:
                    await self._under_lease(connection_id)
                    continue
            except LeaseLost as error:
                log.warning("work handed over", connection=connection_id, reason=str(error))
                continue
            except StoreUnavailable:
                pass  # which the database logs, for all tasks at once
            except Exception:
                # A bug of ours: the lease expires, and the connection is tried again then.
                log.exception("the worker failed", connection=connection_id)
            await self.news.wait(_POLL_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - spreads polls

    async def _under_lease(self, connection_id: str) -> None:
        """Carry a connection's updates to their ends while the lease is being renewed."""
        work = asyncio.create_task(self._work(connection_id))
        renewal = asyncio.create_task(self._renew(connection_id))
        is_ending = False
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            is_ending = True
            raise
        finally:
            for task in (work, renewal):
                task.cancel()
            outcomes = await asyncio.gather(work, renewal, return_exceptions=True)
            if is_ending:
                await self._hand_back(connection_id)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def _hand_back(self, connection_id: str) -> None:
        """Give the lease back before its time, so that another worker, or the next start, goes on at once."""
        try:
            await self.queue.release(connection_id, owner=self.name, now=_now())
        except StoreUnavailable as error:
            log.warning("the lease is left to expire", connection=connection_id, reason=str(error))

    async def _renew(self, connection_id: str) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            await self.queue.renew(connection_id, owner=self.name, until=_now() + LEASE)

    async def _work(self, connection_id: str) -> None:
        """Work on as many updates as one fetch serves; with more of them, it is the others' turn first."""
        updates = await self.queue.pending(connection_id, limit=_AT_ONCE)
        try:
            if updates and not await self._carry(connection_id, updates):
                return
        except _Deleted:
            ends = [_end(update, "the connection was deleted") for update in updates]
            await self.queue.settle(connection_id, ends, owner=self.name, now=_now())
        await self.queue.release(connection_id, owner=self.name, now=_now())

    async def _carry(self, connection_id: str, updates: Sequence[PendingUpdate]) -> bool:
        """Carry updates to their ends; False where some, and so the connection, were put off."""
        connection = await self._connection(connection_id)
        started = time.monotonic()
        try:
            await self._fetch(connection, updates)
        except FetchError as error:
            await self._put_off(connection, updates, str(error))
            return False
        fetched = time.monotonic()
        fetched_from = connection.url
        # A fetch may take minutes: what was changed meanwhile counts, other triggers as well as a deletion.
        connection = await self._connection(connection_id)
        if connection.url != fetched_from:
            return True
        settlements, missing = await self._plan(connection, updates)
        await self._settle(connection, settlements)
        _tell(settlements, fetch_ms=(fetched - started) * 1000, plan_ms=_ms_since(fetched))
        if missing is not None:
            await self._put_off(connection, updates[len(settlements) :], missing)
        return missing is None

    async def _connection(self, connection_id: str) -> Connection:
        try:
            return await self.queue.connection(connection_id)
        except NotFound:
            raise _Deleted from None

    async def _fetch(self, connection: Connection, updates: Sequence[PendingUpdate]) -> None:
        """Fetch; where that takes long, the updates and the log tell how far it has come."""
        told: deque[str] = deque(maxlen=1)
        fetching = asyncio.create_task(self.steps.fetch(connection, updates, told.append))
        try:
            while not (await asyncio.wait({fetching}, timeout=_TELL_SECONDS))[0]:
                if told:
                    progress = told.pop()
                    log.info("fetching", connection=connection.id, progress=progress)
                    await self.queue.tell(updates, f"fetching: {progress}")
        finally:
            fetching.cancel()
            await asyncio.wait({fetching})
        await fetching

    async def _plan(
        self, connection: Connection, updates: Sequence[PendingUpdate]
    ) -> tuple[list[Settlement], str | None]:
        """Plan in order, while the turn lasts; stop, with the reason, at a commit that cannot be read yet."""
        settlements: list[Settlement] = []
        until = time.monotonic() + self.turn
        for update in updates:
            if settlements and (time.monotonic() > until or _is_much(settlements)):
                break
            try:
                settlements.append(await self.steps.plan(connection, update))
            except Gone as error:
                if _now() - update.received_at < _PATIENCE:
                    return settlements, str(error)
                settlements.append(Settlement(update=update, state="gone", reason=str(error)))
            except ObjectUnusable as error:
                settlements.append(_end(update, str(error)))
            except FetchError as error:
                return settlements, str(error)
            except StoreUnavailable:
                raise
            except Exception as error:
                log.exception("planning failed", delivery=update.delivery, ref=update.ref)
                settlements.append(_end(update, f"internal error ({type(error).__name__}): see the log"))
        return settlements, None

    async def _settle(self, connection: Connection, settlements: Sequence[Settlement]) -> None:
        """Record ends, with what is told of them."""
        told = [self.announce(connection, settlement) for settlement in settlements]
        await self.queue.settle(connection.id, told, owner=self.name, now=_now())
        if any(settlement.requests or settlement.events for settlement in told):
            self.rings()

    async def _put_off(self, connection: Connection, updates: Sequence[PendingUpdate], reason: str) -> None:
        """End what has waited for too long, and try the rest again later."""
        given_up = [
            _end(update, f"given up after {_GIVE_UP_AFTER.days} days: {reason}")
            for update in updates
            if _now() - update.received_at > _GIVE_UP_AFTER
        ]
        if given_up:
            await self._settle(connection, given_up)
            _tell(given_up, fetch_ms=None, plan_ms=None)
        attempts = await self.queue.attempts(connection.id)
        delay = backoff(attempts, first=_FIRST_DELAY, longest=_LONGEST_DELAY)
        log.warning(
            "fetch postponed",
            connection=connection.id,
            waiting=len(updates) - len(given_up),
            failed_tries=attempts + 1,
            next_try_in_s=round(delay, 1),
            reason=reason,
        )
        due_at = _now() + timedelta(seconds=delay)
        await self.queue.postpone(connection.id, updates, owner=self.name, due_at=due_at, reason=reason)


def _is_much(settlements: Sequence[Settlement]) -> bool:
    """Say whether what was planned is so large that it is recorded before more is planned."""
    return sum(len(one.body) for settled in settlements for one in settled.requests) > _MOST_BYTES


def _end(update: PendingUpdate, reason: str) -> Settlement:
    return Settlement(update=update, state="failed", reason=reason)


def _tell(settlements: Sequence[Settlement], *, fetch_ms: float | None, plan_ms: float | None) -> None:
    """Write the one line that tells a ref update's way through the stages."""
    for stage, took in (("fetch", fetch_ms), ("plan", plan_ms)):
        if took is not None:
            STAGE.labels(stage).observe(took / 1000)
    for settlement in settlements:
        update = settlement.update
        SETTLED.labels(settlement.state).inc()
        STAGE.labels("received to planned").observe((_now() - update.received_at).total_seconds())
        log.info(
            "push settled",
            state=settlement.state,
            delivery=update.delivery,
            connection=update.connection,
            ref=update.ref,
            commit=update.after,
            reason=settlement.reason,
            executions=[request.id for request in settlement.requests],
            since_received_ms=round((_now() - update.received_at).total_seconds() * 1000),
            fetch_ms=None if fetch_ms is None else round(fetch_ms),
            plan_ms=None if plan_ms is None else round(plan_ms),
        )


def _ms_since(moment: float) -> float:
    return (time.monotonic() - moment) * 1000


def _now() -> datetime:
    return datetime.now(UTC)
