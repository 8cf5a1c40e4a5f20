"""The worker: carries accepted ref updates, one connection at a time, through fetch and plan.

It holds the order of the stages and decides what each failure leads to. Its collaborators do the work itself.
"""

import asyncio
import itertools
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import sqlalchemy
import structlog

from gateway.errors import (
    FetchError,
    Gone,
    NotFound,
    ObjectUnusable,
    RemoteRefuses,
    RemoteSilent,
    StoreUnavailable,
)
from gateway.metrics import CLAIMED, LEASES_EXPIRED, LEASES_LOST
from gateway.store import connections, work_queue
from gateway.store.claims import Claims
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.notify import Waiter
from gateway.store.work_queue import LeaseLost, PendingUpdate, Postponement, Settlement
from gateway.worker.crew import Crew
from gateway.worker.outcomes import (
    Outcome,
    count_postponed,
    failure,
    given_up,
    is_large,
    is_overdue,
    report_postponed,
    report_settled,
    retry_delay,
    retry_later,
)
from gateway.worker.polling import POLL_SECONDS

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()

LEASE = timedelta(seconds=60)
_RENEW_SECONDS = 20.0
_PROGRESS_SECONDS = 2.0
# How many ref updates of a connection one fetch serves, and for how long they are planned before other
# connections get their turn. The remaining updates find what they need in the mirror.
_BATCH_SIZE = 200
_TURN_SECONDS = 10.0
# A submodule may be on a host that hangs: after so long the updates of other refs are planned beside it.
_SLOW_SECONDS = 5.0
_MAX_SLOW = 3
_COMMIT_GRACE = timedelta(seconds=10)
# After a failure at the store: the next try of the same connection may fail at once, too.
_FAILURE_PAUSE_SECONDS = 5.0


class _Deleted(Exception):
    """The connection was deleted."""


class Stages(Protocol):
    """The stages that a ref update passes while its connection is leased."""

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> Mapping[int, FetchError]:
        """Bring the objects of these updates into the mirror. Raises `FetchError`.

        Return the errors of the updates that could not be fetched, by their `seq`. `progress` is called, in
        any thread, with how far the fetch has come.
        """

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Read the commit and plan its requests. Raises `FetchError`, most often `Gone`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """The worker of a process; any number of processes may run side by side.

    It works on up to `concurrency` connections at once, and claims as many as it has free places.
    `notify` is called when there is something to publish or to show. `announce` adds events and verdicts to a
    settlement.
    `keeping` keeps open, within its block, what reads a connection's mirror. After `turn` seconds a
    connection with more to do waits for its next turn. `poll_seconds` is the interval of polling for work.
    After `slow` seconds an update no longer delays those of other refs. `patience` is how long a commit may
    be missing, because a webhook can arrive before the provider has replicated the commit.
    """

    name: str
    database: Database
    claims: Claims
    stages: Stages
    wakeups: Waiter
    notify: Callable[[], None]
    announce: Callable[[Connection, Settlement], Settlement] = lambda _connection, settlement: settlement
    keeping: Callable[[str], AbstractAsyncContextManager[None]] = lambda _connection: nullcontext()
    concurrency: int = 1
    turn: float = _TURN_SECONDS
    poll_seconds: float = POLL_SECONDS
    slow: float = _SLOW_SECONDS
    patience: timedelta = _COMMIT_GRACE
    # Leases whose work has failed at the store: since when, their connections and owners.
    _left: deque[tuple[float, str, str]] = field(default_factory=deque)

    async def run(self) -> None:
        """Work until cancelled. Record failures on the delivery or in the log, and go on."""
        numbers = itertools.count(1)
        crew = Crew(
            lambda: replace(self, name=f"{self.name}-{next(numbers)}"),
            places=self.concurrency,
            wakeups=self.wakeups,
        )
        await crew.run(failure="the worker failed", seconds=self.poll_seconds)

    async def claim(self, most: int) -> Sequence[str]:
        """Claim the next connections. Read first, which waits for no writer: usually there is no work."""
        await self._give_back_left()
        now = _now()
        if not await self.database.read(self.claims.has_work, now=now):
            return ()
        claimed = await self.database.write(
            self.claims.claim, owner=self.name, now=now, until=now + LEASE, most=most
        )
        CLAIMED.inc(len(claimed))
        LEASES_EXPIRED.inc(self.claims.expired.take())
        return claimed

    async def work_on(self, connection_id: str) -> None:
        """Work on a claimed connection. A failure is logged, and its lease is given back or expires."""
        try:
            await self._under_lease(connection_id)
        except StoreUnavailable:
            # The database logs it once for all tasks.
            self._left.append((time.monotonic(), connection_id, self.name))
        except Exception:
            # A bug of ours must not end the loop. The work is tried again when its lease expires.
            log.exception("the worker failed")

    async def give_back(self, connection_ids: Sequence[str]) -> None:
        """Release claimed connections during their work."""
        for one in connection_ids:
            await self.database.write(work_queue.give_back, one, owner=self.name, now=_now())

    async def _give_back_left(self) -> None:
        """Release what failures at the store have left leased: it may answer again, as after a failover."""
        while self._left and self._left[0][0] < time.monotonic() - _FAILURE_PAUSE_SECONDS:
            _, connection_id, owner = self._left[0]
            await self.database.write(work_queue.give_back, connection_id, owner=owner, now=_now())
            self._left.popleft()

    async def _under_lease(self, connection_id: str) -> None:
        """Carry a connection's updates to their ends while the lease is being renewed."""
        work = asyncio.create_task(self._work_and_close(connection_id))
        renewal = asyncio.create_task(self._renew(connection_id))
        try:
            await asyncio.wait({work, renewal}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, renewal):
                task.cancel()
            outcomes = await asyncio.gather(work, renewal, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, LeaseLost):
                LEASES_LOST.inc()
                log.warning("work handed over", connection=connection_id, reason=str(outcome))
                return
            if isinstance(outcome, Exception):
                raise outcome

    async def _work_and_close(self, connection_id: str) -> None:
        async with self.keeping(connection_id):
            await self._work(connection_id)

    async def _renew(self, connection_id: str) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            await self.database.write(work_queue.renew, connection_id, owner=self.name, until=_now() + LEASE)

    async def _work(self, connection_id: str) -> None:
        """Work on as many updates as one fetch serves; remaining work goes to the back of the queue.

        While slow updates are being planned, keep the connection and work on what arrives for its other refs.
        """
        slow: dict[str, asyncio.Task[Outcome]] = {}
        unreachable: tuple[Connection, Sequence[PendingUpdate], str] | None = None
        is_released = False
        try:
            while True:
                connection, updates = await self._read(_work_of, connection_id, without=list(slow))
                if updates and unreachable is None and len(slow) < _MAX_SLOW:
                    try:
                        is_released = await self._carry(connection, updates, slow)
                    except FetchError as error:
                        unreachable = (connection, updates, str(error))
                        count_postponed(connection.url, error, updates=len(updates))
                if not slow:
                    break
                await asyncio.wait(
                    slow.values(), timeout=self.poll_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                ended = [slow.pop(ref).result() for ref, planning in list(slow.items()) if planning.done()]
                await self._record(connection, ended)
        except _Deleted:
            pending = await self.database.read(work_queue.pending, connection_id, limit=_BATCH_SIZE)
            failures = [failure(update, "the connection was deleted") for update in pending]
            await self.database.write(work_queue.settle, connection_id, failures, owner=self.name, now=_now())
        finally:
            for planning in slow.values():
                planning.cancel()
            await asyncio.gather(*slow.values(), return_exceptions=True)
        if unreachable is not None:
            await self._postpone(*unreachable)
        elif not is_released:
            await self.database.write(work_queue.release, connection_id, owner=self.name, now=_now())

    async def _carry(
        self,
        connection: Connection,
        updates: Sequence[PendingUpdate],
        slow: dict[str, asyncio.Task[Outcome]],
    ) -> bool:
        """Fetch updates and carry them to their ends. Raises `FetchError` if nothing could be fetched.

        Return whether the lease was released: nothing is left to do in this turn.
        """
        started = time.monotonic()
        failed = await self._fetch(connection, updates)
        fetched = time.monotonic()
        # A fetch may take minutes: new triggers count that were set meanwhile, and so does a deletion.
        changed = await self._read(connections.get, connection.id)
        if changed.url != connection.url:
            return False
        outcomes = await self._plan(changed, updates, failed, slow)
        return await self._record(
            changed,
            outcomes,
            fetch_ms=(fetched - started) * 1000,
            plan_ms=_ms_since(fetched),
            ends_turn=not slow,
        )

    async def _read(
        self, work: Callable[Concatenate[sqlalchemy.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Read a connection that may be deleted. Raises `_Deleted`."""
        try:
            return await self.database.read(work, *args, **kwargs)
        except NotFound:
            raise _Deleted from None

    async def _fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate]
    ) -> Mapping[int, FetchError]:
        """Fetch; report the progress of a long fetch on the updates and in the log."""
        reported: deque[str] = deque(maxlen=1)
        fetching = asyncio.create_task(self.stages.fetch(connection, updates, reported.append))
        try:
            while not (await asyncio.wait({fetching}, timeout=_PROGRESS_SECONDS))[0]:
                if reported:
                    progress = reported.pop()
                    log.info("fetching", connection=connection.id, progress=progress)
                    await self.database.write(work_queue.record_progress, updates, f"fetching: {progress}")
        finally:
            fetching.cancel()
            await asyncio.wait({fetching})
        try:
            failed = await fetching
        except (RemoteSilent, RemoteRefuses) as error:
            self.claims.silent.record(connection.url, answers=isinstance(error, RemoteRefuses), now=_now())
            raise
        self.claims.silent.record(connection.url, answers=True, now=_now())
        return failed

    async def _plan(
        self,
        connection: Connection,
        updates: Sequence[PendingUpdate],
        failed: Mapping[int, FetchError],
        slow: dict[str, asyncio.Task[Outcome]],
    ) -> list[Outcome]:
        """Plan in order while the turn lasts; move slow updates to `slow` and go on.

        A postponed or slow update holds back the later updates of its own ref, and no others.
        """
        outcomes: list[Outcome] = []
        waiting: dict[str, str] = {}
        held_back: defaultdict[str, list[PendingUpdate]] = defaultdict(list)
        until = time.monotonic() + self.turn
        for update in updates:
            if update.ref in waiting:
                held_back[waiting[update.ref]].append(update)
                continue
            is_over = time.monotonic() > until or is_large(outcomes)
            if (outcomes and is_over) or len(slow) == _MAX_SLOW:
                break
            planning = asyncio.create_task(self._outcome(connection, update, failed.get(update.seq)))
            slow[update.ref] = planning
            await asyncio.wait({planning}, timeout=self.slow)
            if not planning.done():
                waiting[update.ref] = "planning is slow"
                continue
            outcome = slow.pop(update.ref).result()
            outcomes.append(outcome)
            if isinstance(outcome, Postponement):
                waiting[update.ref] = outcome.reason
        for reason, behind in held_back.items():
            await self.database.write(
                work_queue.record_progress, behind, f"waiting for the previous push: {reason}"
            )
        return outcomes

    async def _outcome(
        self, connection: Connection, update: PendingUpdate, failed: FetchError | None
    ) -> Outcome:
        """Plan one update, unless fetching it `failed`."""
        try:
            return await self._planned(connection, update, failed)
        except Gone as error:
            if _now() - update.received_at < self.patience:
                return retry_later(update, error, url=connection.url)
            return Settlement(update=update, state="gone", reason=str(error))
        except ObjectUnusable as error:
            return failure(update, str(error))
        except FetchError as error:
            return retry_later(update, error, url=connection.url)
        except StoreUnavailable:
            raise
        except Exception as error:
            log.exception("planning failed", delivery=update.delivery, ref=update.ref)
            return failure(update, f"internal error ({type(error).__name__}): see the log")

    async def _planned(
        self, connection: Connection, update: PendingUpdate, failed: FetchError | None
    ) -> Settlement:
        if failed is not None:
            raise failed
        return await self.stages.plan(connection, update)

    async def _record(
        self,
        connection: Connection,
        outcomes: Sequence[Outcome],
        *,
        fetch_ms: float | None = None,
        plan_ms: float | None = None,
        ends_turn: bool = False,
    ) -> bool:
        """Record settlements, with their events, and postponements; log both.

        Return whether the lease was released, which happens in the same transaction if it `ends_turn`.
        """
        settlements = [self.announce(connection, end) for end in outcomes if isinstance(end, Settlement)]
        postponed = [outcome for outcome in outcomes if isinstance(outcome, Postponement)]
        if not outcomes:
            return False
        await self.database.write(
            work_queue.settle,
            connection.id,
            settlements,
            owner=self.name,
            now=_now(),
            postponed=postponed,
            ends_turn=ends_turn,
        )
        if any(end.requests or end.events or end.statuses for end in settlements):
            self.notify()
        report_settled(settlements, fetch_ms=fetch_ms, plan_ms=plan_ms)
        report_postponed(postponed)
        return ends_turn

    async def _postpone(self, connection: Connection, updates: Sequence[PendingUpdate], reason: str) -> None:
        """Give up the updates that have waited for too long, and try the others again later."""
        overdue = [given_up(update, reason) for update in updates if is_overdue(update)]
        await self._record(connection, overdue)
        attempts = await self.database.read(work_queue.attempts, connection.id)
        delay = retry_delay(attempts)
        log.warning(
            "fetch postponed",
            connection=connection.id,
            waiting=len(updates) - len(overdue),
            failed_tries=attempts + 1,
            next_try_in_s=round(delay, 1),
            reason=reason,
        )
        due_at = _now() + timedelta(seconds=delay)
        await self.database.write(
            work_queue.postpone, connection.id, updates, owner=self.name, due_at=due_at, reason=reason
        )


def _work_of(
    conn: sqlalchemy.Connection, connection_id: str, *, without: Sequence[str]
) -> tuple[Connection, Sequence[PendingUpdate]]:
    """Return a connection and its next updates, except those of the refs in `without`."""
    connection = connections.get(conn, connection_id)
    return connection, work_queue.pending(conn, connection_id, now=_now(), limit=_BATCH_SIZE, without=without)


def _ms_since(moment: float) -> float:
    return (time.monotonic() - moment) * 1000


def _now() -> datetime:
    return datetime.now(UTC)
