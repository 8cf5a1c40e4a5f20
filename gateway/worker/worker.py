"""The worker: takes accepted ref updates, one connection at a time, through fetch and plan.

It knows the order of the steps and what becomes of each failure. How a step is done, its collaborators know.
"""

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

import structlog

from gateway.backoff import backoff
from gateway.errors import (
    FetchError,
    Gone,
    NotFound,
    ObjectUnusable,
    RemoteRefuses,
    RemoteSilent,
    StoreUnavailable,
)
from gateway.metrics import SETTLED, STAGE
from gateway.store.claims import MAX_DELAY
from gateway.store.connections import Connection
from gateway.store.notify import Waiter
from gateway.store.work_queue import LeaseLost, PendingUpdate, Postponement, Settlement
from gateway.worker.polling import POLL_SECONDS, poll

log = structlog.get_logger()

LEASE = timedelta(seconds=60)
_RENEW_SECONDS = 20.0
_TELL_SECONDS = 2.0
# Of requests that are planned, and wait in memory to be recorded together.
_MAX_BYTES = 16 * 1024 * 1024
# How many ref updates of a connection one fetch serves, and for how long they are planned before it is the
# turn of others: the rest finds what it needs in the mirror.
_BATCH_SIZE = 200
_TURN_SECONDS = 10.0
# A submodule may be on a host that hangs: after so long the updates of other refs are planned beside it.
_SLOW_SECONDS = 5.0
_MAX_SLOW = 3
_FIRST_DELAY = 1.0
_COMMIT_GRACE = timedelta(seconds=10)
# A remote that has not answered for so long is given up; the reason stays on each of its ref updates.
_GIVE_UP_AFTER = timedelta(days=3)


Outcome = Settlement | Postponement


class _Deleted(Exception):
    """The connection is no more."""


class Queue(Protocol):
    """Pending ref updates under leases. A call may raise `StoreUnavailable`, the last five `LeaseLost`."""

    async def claim(self, *, owner: str, now: datetime, until: datetime) -> str | None:
        """Take the lease on a connection with due work."""

    def note(self, url: str, *, answers: bool, now: datetime) -> None:
        """Take down whether a remote's host has answered."""

    async def connection(self, connection: str) -> Connection:
        """Return a connection; raises `NotFound`."""

    async def pending(
        self, connection: str, *, limit: int, now: datetime | None = None, without: Collection[str] = ()
    ) -> Sequence[PendingUpdate]:
        """Return the pending updates in order of arrival, but for those of the refs in `without`.

        With `now`, return those that may be worked on then.
        """

    async def attempts(self, connection: str) -> int:
        """Return how many tries in a row have failed."""

    async def tell(self, updates: Sequence[PendingUpdate], reason: str) -> None:
        """Let updates that are being worked on say how it goes."""

    async def renew(self, connection: str, *, owner: str, until: datetime) -> None:
        """Keep the lease for longer."""

    async def settle(
        self,
        connection: str,
        settlements: Sequence[Settlement],
        *,
        owner: str,
        now: datetime,
        postponed: Sequence[Postponement] = (),
    ) -> None:
        """Record ends and requests, and what is put off by itself, in one transaction."""

    async def release(self, connection: str, *, owner: str, now: datetime) -> None:
        """Give the lease back after a success: the next failure is the first."""

    async def hand_back(self, connection: str, *, owner: str, now: datetime) -> None:
        """Give the lease back in the middle of a try: failures go on being counted."""

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
    ) -> Mapping[int, FetchError]:
        """Bring the objects of these updates into the mirror; raises `FetchError`.

        Returns what kept single updates from it, by their `seq`. `progress` is told how it goes, in any
        thread.
        """

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Read the commit and say what it asks for; raises `FetchError`, most often `Gone`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker; any number may run side by side.

    `notify` is called when there is something to publish. `announce` adds the event to a settlement. After
    `turn` seconds a connection with more to do waits for its next turn. `poll_seconds` is the interval of
    polling for work. After `slow` seconds an update no longer delays those of other refs. `patience` is how
    long a commit may be missing, because a webhook can arrive before the provider has replicated the commit.
    """

    name: str
    queue: Queue
    steps: Steps
    wakeups: Waiter
    notify: Callable[[], None]
    announce: Callable[[Connection, Settlement], Settlement] = lambda _connection, settlement: settlement
    turn: float = _TURN_SECONDS
    poll_seconds: float = POLL_SECONDS
    slow: float = _SLOW_SECONDS
    patience: timedelta = _COMMIT_GRACE

    async def run(self) -> None:
        """Work until cancelled. Record failures on the delivery or in the log, and go on."""
        await poll(
            self._work_next, wakeups=self.wakeups, failure="the worker failed", seconds=self.poll_seconds
        )

    async def _work_next(self) -> bool:
        """Work on a connection that has due updates, if there is one; return whether there was."""
        connection_id = None
        try:
            connection_id = await self.queue.claim(owner=self.name, now=_now(), until=_now() + LEASE)
            if connection_id is None:
                return False
            await self._under_lease(connection_id)
        except LeaseLost as error:
            log.warning("work handed over", connection=connection_id, reason=str(error))
        except StoreUnavailable:
            raise
        except Exception:
            # A bug of ours: the lease expires, and the connection is tried again then.
            log.exception("the worker failed", connection=connection_id)
            return False
        return True

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
            await self.queue.hand_back(connection_id, owner=self.name, now=_now())
        except StoreUnavailable as error:
            log.warning("the lease is left to expire", connection=connection_id, reason=str(error))

    async def _renew(self, connection_id: str) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            await self.queue.renew(connection_id, owner=self.name, until=_now() + LEASE)

    async def _work(self, connection_id: str) -> None:
        """Work on as many updates as one fetch serves; with more of them, it is the others' turn first.

        While updates are slow, the connection is kept, and what comes for its other refs is worked on.
        """
        slow: dict[str, asyncio.Task[Outcome]] = {}
        away: tuple[Connection, Sequence[PendingUpdate], str] | None = None
        try:
            while True:
                connection = await self._connection(connection_id)
                updates = await self.queue.pending(
                    connection_id, now=_now(), limit=_BATCH_SIZE, without=list(slow)
                )
                if updates and away is None and len(slow) < _MAX_SLOW:
                    try:
                        await self._carry(connection, updates, slow)
                    except FetchError as error:
                        away = (connection, updates, str(error))
                if not slow:
                    break
                await asyncio.wait(
                    slow.values(), timeout=self.poll_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                ended = [slow.pop(ref).result() for ref, planning in list(slow.items()) if planning.done()]
                await self._record(connection, ended)
        except _Deleted:
            left = await self.queue.pending(connection_id, limit=_BATCH_SIZE)
            ends = [_end(update, "the connection was deleted") for update in left]
            await self.queue.settle(connection_id, ends, owner=self.name, now=_now())
        finally:
            for planning in slow.values():
                planning.cancel()
            await asyncio.gather(*slow.values(), return_exceptions=True)
        if away is not None:
            await self._put_off(*away)
        else:
            await self.queue.release(connection_id, owner=self.name, now=_now())

    async def _carry(
        self,
        connection: Connection,
        updates: Sequence[PendingUpdate],
        slow: dict[str, asyncio.Task[Outcome]],
    ) -> None:
        """Fetch updates, and carry them to their ends; raises `FetchError` where nothing could be fetched."""
        started = time.monotonic()
        failed = await self._fetch(connection, updates)
        fetched = time.monotonic()
        # A fetch may take minutes: what was changed meanwhile counts, other triggers as well as a deletion.
        changed = await self._connection(connection.id)
        if changed.url != connection.url:
            return
        outcomes = await self._plan(changed, updates, failed, slow)
        await self._record(changed, outcomes, fetch_ms=(fetched - started) * 1000, plan_ms=_ms_since(fetched))

    async def _connection(self, connection_id: str) -> Connection:
        try:
            return await self.queue.connection(connection_id)
        except NotFound:
            raise _Deleted from None

    async def _fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate]
    ) -> Mapping[int, FetchError]:
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
        try:
            failed = await fetching
        except (RemoteSilent, RemoteRefuses) as error:
            self.queue.note(connection.url, answers=isinstance(error, RemoteRefuses), now=_now())
            raise
        self.queue.note(connection.url, answers=True, now=_now())
        return failed

    async def _plan(
        self,
        connection: Connection,
        updates: Sequence[PendingUpdate],
        failed: Mapping[int, FetchError],
        slow: dict[str, asyncio.Task[Outcome]],
    ) -> list[Outcome]:
        """Plan in order, while the turn lasts; what takes long goes on in `slow`.

        What is put off, or is slow, holds back the updates of its own ref, and no others.
        """
        outcomes: list[Outcome] = []
        waiting: dict[str, str] = {}
        held_back: defaultdict[str, list[PendingUpdate]] = defaultdict(list)
        until = time.monotonic() + self.turn
        for update in updates:
            if update.ref in waiting:
                held_back[waiting[update.ref]].append(update)
                continue
            is_over = time.monotonic() > until or _is_much(outcomes)
            if (outcomes and is_over) or len(slow) == _MAX_SLOW:
                break
            planning = asyncio.create_task(self._outcome(connection, update, failed.get(update.seq)))
            slow[update.ref] = planning
            await asyncio.wait({planning}, timeout=self.slow)
            if not planning.done():
                waiting[update.ref] = "it takes long"
                continue
            outcome = slow.pop(update.ref).result()
            outcomes.append(outcome)
            if isinstance(outcome, Postponement):
                waiting[update.ref] = outcome.reason
        for reason, behind in held_back.items():
            await self.queue.tell(behind, f"waits for the push before it: {reason}")
        return outcomes

    async def _outcome(
        self, connection: Connection, update: PendingUpdate, failed: FetchError | None
    ) -> Outcome:
        """Plan one update, unless fetching it `failed`."""
        try:
            return await self._planned(connection, update, failed)
        except Gone as error:
            if _now() - update.received_at < self.patience:
                return _later(update, str(error))
            return Settlement(update=update, state="gone", reason=str(error))
        except ObjectUnusable as error:
            return _end(update, str(error))
        except FetchError as error:
            return _later(update, str(error))
        except StoreUnavailable:
            raise
        except Exception as error:
            log.exception("planning failed", delivery=update.delivery, ref=update.ref)
            return _end(update, f"internal error ({type(error).__name__}): see the log")

    async def _planned(
        self, connection: Connection, update: PendingUpdate, failed: FetchError | None
    ) -> Settlement:
        if failed is not None:
            raise failed
        return await self.steps.plan(connection, update)

    async def _record(
        self,
        connection: Connection,
        outcomes: Sequence[Outcome],
        *,
        fetch_ms: float | None = None,
        plan_ms: float | None = None,
    ) -> None:
        """Record ends, with what is told of them, and what is put off; tell of both in the log."""
        ends = [self.announce(connection, one) for one in outcomes if isinstance(one, Settlement)]
        postponed = [one for one in outcomes if isinstance(one, Postponement)]
        if not outcomes:
            return
        await self.queue.settle(connection.id, ends, owner=self.name, now=_now(), postponed=postponed)
        if any(end.requests or end.events for end in ends):
            self.notify()
        _tell(ends, fetch_ms=fetch_ms, plan_ms=plan_ms)
        for one in postponed:
            log.warning(
                "push postponed",
                delivery=one.update.delivery,
                connection=connection.id,
                ref=one.update.ref,
                commit=one.update.after,
                failed_tries=one.update.tries + 1,
                next_try_at=one.due_at.isoformat(),
                reason=one.reason,
            )

    async def _put_off(self, connection: Connection, updates: Sequence[PendingUpdate], reason: str) -> None:
        """End what has waited for too long, and try the rest again later."""
        given_up = [_given_up(update, reason) for update in updates if _is_over(update)]
        await self._record(connection, given_up)
        attempts = await self.queue.attempts(connection.id)
        delay = backoff(attempts, first=_FIRST_DELAY, longest=MAX_DELAY.total_seconds())
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


def _is_much(outcomes: Sequence[Outcome]) -> bool:
    """Say whether what was planned is so large that it is recorded before more is planned."""
    settled = (one for one in outcomes if isinstance(one, Settlement))
    return sum(len(request.body) for one in settled for request in one.requests) > _MAX_BYTES


def _end(update: PendingUpdate, reason: str) -> Settlement:
    return Settlement(update=update, state="failed", reason=reason)


def _is_over(update: PendingUpdate) -> bool:
    return _now() - update.received_at > _GIVE_UP_AFTER


def _given_up(update: PendingUpdate, reason: str) -> Settlement:
    return _end(update, f"given up after {_GIVE_UP_AFTER.days} days: {reason}")


def _later(update: PendingUpdate, reason: str) -> Outcome:
    """Put an update off, or give it up where it has waited for too long."""
    if _is_over(update):
        return _given_up(update, reason)
    delay = backoff(update.tries, first=_FIRST_DELAY, longest=MAX_DELAY.total_seconds())
    return Postponement(update=update, due_at=_now() + timedelta(seconds=delay), reason=reason)


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
