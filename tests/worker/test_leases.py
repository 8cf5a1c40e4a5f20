"""A worker and its lease: failures of the store, a lost lease, and the end of the worker."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from gateway.errors import (
    FetchError,
    StoreUnavailable,
)
from gateway.store import accept, work_queue
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.work_queue import LeaseLost, PendingUpdate, Settlement
from gateway.worker.worker import _RENEW_SECONDS, LEASE, Worker
from testing.records import arrival, connection, move
from testing.service import WAIT_SECONDS
from tests.store.claiming import first
from tests.worker.stages import CLAIMS, FaultyDatabase, Scripted, Work, is_released, pushed, states, worked


class NeverEnds:
    """Stages whose fetch begins, and hangs."""

    def __init__(self) -> None:
        """Begin."""
        self.began = asyncio.Event()

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Hang."""
        progress(f"{connection.id}: {len(updates)}")
        self.began.set()
        await asyncio.Event().wait()
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Is never reached."""
        raise AssertionError((connection, update))


def test_a_worker_that_is_ended_hands_its_work_back(database: Database) -> None:
    """No worker waits for its lease to expire; earlier failed tries still count."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as conn:
        accept.record(conn, [arrival(move("a" * 40, "b" * 40), received_at=now)])
        assert CLAIMS.claim(conn, owner="w", now=now, until=now + timedelta(seconds=60)) == ["c1"]
        work_queue.postpone(conn, "c1", (), owner="w", due_at=now, reason="no answer")

    async def scenario() -> str | None:
        stages, notifier = NeverEnds(), Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=stages,
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
        )
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(WAIT_SECONDS):
            await stages.began.wait()
            assert await claim_of_another(database) is None
            running.cancel()
            await asyncio.wait({running})
            return await claim_of_another(database)

    assert asyncio.run(scenario()) == "c1"
    with database.reading() as conn:
        assert work_queue.attempts(conn, "c1") == 1


async def claim_of_another(database: Database) -> str | None:
    """Return the connection that another worker can claim, if any."""
    now = datetime.now(UTC)
    return first(await database.write(CLAIMS.claim, owner="other", now=now, until=now + LEASE))


@pytest.mark.parametrize("work", [CLAIMS.has_work, CLAIMS.claim], ids=["look", "claim"])
@pytest.mark.parametrize(
    ("error", "logged"),
    [(StoreUnavailable("locked"), []), (ValueError("a bug"), ["the worker failed"])],
    ids=["store", "bug"],
)
def test_a_failure_at_the_store_ends_no_worker(
    database: FaultyDatabase, work: Work, error: Exception, logged: list[str]
) -> None:
    """The store logs its outage once for all tasks."""
    pushed(database, "main")
    database.failing[work] = error
    with capture_logs() as logs:
        done = lambda: states(database)["main"][0] == "planned" and is_released(database)  # noqa: E731
        asyncio.run(worked(database, Scripted(), done, poll_seconds=0.01))
    failures = [one["event"] for one in logs if one["log_level"] in {"warning", "error"}]
    assert failures == logged


@pytest.mark.parametrize(
    ("error", "poll", "logged"),
    [
        (LeaseLost("another has it"), 3600.0, ["work handed over"]),
        (StoreUnavailable("locked"), 0.01, []),
        (ValueError("a bug"), 0.01, ["the worker failed"]),
    ],
    ids=["lost", "store", "bug"],
)
def test_a_failure_while_recording_is_logged(
    database: FaultyDatabase, error: Exception, poll: float, logged: list[str]
) -> None:
    """Nothing is recorded then, and the push stays pending. A lost lease costs no pause."""
    pushed(database, "main")
    database.failing[work_queue.settle] = error
    with capture_logs() as logs:
        tried = lambda: not database.failing and len(database.calls_of(CLAIMS.has_work)) > 1  # noqa: E731
        asyncio.run(worked(database, Scripted(), tried, poll_seconds=poll))
    failures = [one["event"] for one in logs if one["log_level"] in {"warning", "error"}]
    assert (failures, states(database)["main"][0]) == (logged, "pending")


def test_who_has_lost_the_lease_stops_its_fetch(
    database: FaultyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has taken over; this worker continues with other connections."""
    monkeypatch.setattr("gateway.worker.worker._RENEW_SECONDS", 0.01)
    now = datetime.now(UTC)
    pushed(database, "main")
    connection(database, "c2", created_at=now, updated_at=now)
    with database.writing() as conn:
        later = now + timedelta(milliseconds=1)
        accept.record(
            conn,
            [arrival(move("a" * 40, "b" * 40, "refs/heads/other"), connection="c2", received_at=later)],
        )
    stopped: list[str] = []

    class Hangs(Scripted):
        async def fetch(
            self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
        ) -> dict[int, FetchError]:
            if connection.id == "c1":
                database.failing[work_queue.renew] = LeaseLost("another has it")
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped.append(connection.id)
            return await super().fetch(connection, updates, progress)

    done = lambda: states(database)["other"][0] == "planned" and stopped  # noqa: E731
    asyncio.run(worked(database, Hangs(), done))
    assert (stopped, states(database)["main"][0]) == (["c1"], "pending")
    assert database.calls_of(CLAIMS.claim)
    assert database.calls_of(work_queue.renew)
    for call in database.calls_of(CLAIMS.claim, work_queue.renew):
        assert round((call.kwargs["until"] - call.called_at).total_seconds()) == 60


def test_a_lease_outlives_two_renewals_that_come_late() -> None:
    """A worker that is busy for a moment keeps its connection."""
    assert LEASE.total_seconds() >= 3 * _RENEW_SECONDS


def test_a_worker_can_be_ended_while_the_store_is_away(database: FaultyDatabase) -> None:
    """Its lease expires by itself."""
    pushed(database, "main")
    stages = NeverEnds()
    database.failing[work_queue.give_back] = StoreUnavailable("away")

    async def scenario() -> bool:
        notifier = Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=stages,
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
        )
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(WAIT_SECONDS):
            await stages.began.wait()
        running.cancel()
        await asyncio.wait({running})
        return running.cancelled()

    assert asyncio.run(scenario())
    assert database.failing == {}


def test_a_store_that_is_away_while_planning_is_the_end_of_no_push(database: FaultyDatabase) -> None:
    """It stays pending, and its lease is left to expire."""
    stages = Scripted(main=[StoreUnavailable("away")])
    pushed(database, "main")
    claimed_again = lambda: stages.planned and len(database.calls_of(CLAIMS.has_work)) > 2  # noqa: E731
    asyncio.run(worked(database, stages, claimed_again))
    assert states(database)["main"] == ("pending", None)


def test_a_lease_is_given_back_once_the_store_answers(
    database: FaultyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a failover, where it would otherwise expire only after a minute."""
    monkeypatch.setattr("gateway.worker.worker._FAILURE_PAUSE_SECONDS", 0.0)
    pushed(database, "main")
    database.failing[work_queue.settle] = StoreUnavailable("away")
    database.failing[work_queue.give_back] = StoreUnavailable("still away")
    done = lambda: states(database)["main"][0] == "planned" and is_released(database)  # noqa: E731
    asyncio.run(worked(database, Scripted(), done))
    given_back = database.calls_of(work_queue.give_back)
    assert [call.args for call in given_back] == [("c1",)] * 2
    # Each claim has an owner of its own: a lease of another worker, or of a later claim, is not given back.
    assert given_back[0].kwargs["owner"] == given_back[1].kwargs["owner"]
