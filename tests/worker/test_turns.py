"""The turns of connections, and what is recorded and notified in a turn."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from gateway.errors import (
    FetchError,
)
from gateway.intake.group_commit import DeliveryWriter
from gateway.metrics import PUSH_SECONDS, STAGE
from gateway.store import accept
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.events import NewEvent
from gateway.store.executions import NewRequest
from gateway.store.notify import Notifier
from gateway.store.work_queue import PendingUpdate, Settlement
from gateway.worker.worker import Worker
from testing.records import arrival, connection, move
from testing.service import WAIT_SECONDS
from tests.worker.stages import CLAIMS, Scripted, is_released, pushed, states, worked


class InOrder:
    """Stages that record the connections of planned updates, in order."""

    def __init__(self, most: int) -> None:
        """Set the event after so many."""
        self.planned: list[str] = []
        self.done = asyncio.Event()
        self._most = most

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Fetch everything."""
        progress(f"{connection.id}: {len(updates)}")
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Run nothing."""
        self.planned.append(connection.id)
        if len(self.planned) == self._most:
            self.done.set()
        return Settlement(update=update, state="planned", reason="")


def test_a_storm_in_one_repository_lets_the_others_have_their_turns(database: Database) -> None:
    """The only worker does not stay until all updates of a connection are done."""
    now = datetime.now(UTC)
    storm = [move("a" * 40, "b" * 40, ref=f"refs/heads/{number}") for number in range(10)]
    push = move("a" * 40, "b" * 40)
    for one in ("c1", "c2", "c3"):
        connection(database, one, created_at=now, updated_at=now)
    with database.writing() as conn:
        accept.record(conn, [arrival(*storm, received_at=now)])
        others = [arrival(push, connection=one, received_at=now) for one in ("c2", "c3")]
        accept.record(conn, others)

    async def scenario() -> list[str]:
        stages, notifier = InOrder(len(storm) + 2), Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=stages,
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
            turn=0,
        )
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(WAIT_SECONDS):
            await stages.done.wait()
        running.cancel()
        await asyncio.wait({running})
        return stages.planned

    planned = asyncio.run(scenario())
    assert sorted(planned[:3]) == ["c1", "c2", "c3"]
    assert planned.count("c1") == len(storm)


def test_nobody_waits_for_a_poll(database: Database) -> None:
    """Intake notifies the worker, and the worker notifies the relay: polls only cover lost notifications."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)

    class Asking(Scripted):
        async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
            settlement = await super().plan(connection, update)
            return replace(settlement, requests=(request_of(update, b"{}"),))

    async def scenario() -> None:
        pushes, requests = Notifier(), Notifier()
        relay, hour = requests.subscribe(), 3600
        accepter = DeliveryWriter(database, notify=pushes.notify)
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=Asking(),
            wakeups=pushes.subscribe(),
            notify=requests.notify,
            poll_seconds=hour,
        )
        accepter.start()
        running = asyncio.create_task(worker.run())
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                for before, after in (("a" * 40, "b" * 40), ("b" * 40, "a" * 40)):
                    await accepter.accept(arrival(move(before, after), received_at=now))
                    await relay.wait(hour)
        finally:
            running.cancel()
            await asyncio.wait({running})
            await accepter.stop()

    asyncio.run(scenario())
    assert states(database)["main"] == ("planned", "nothing runs")


class Clock:
    """The worker's clock, which only the stages move."""

    def __init__(self) -> None:
        """Begin anywhere."""
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


class Timed(Scripted):
    """Stages that take time by the worker's clock, make requests, and count what is recorded meanwhile."""

    def __init__(
        self, database: Database, clock: Clock, *, plan_seconds: float = 0, body: bytes = b""
    ) -> None:
        """Take this long for each plan, and make a request with this body, if given."""
        super().__init__()
        self._database, self._clock = database, clock
        self._plan_seconds, self._body = plan_seconds, body
        self.recorded: list[int] = []

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Take seven seconds."""
        self._clock.now += 7
        return await super().fetch(connection, updates, progress)

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Take some time; note how many pushes have ended."""
        ended = [state for state, _ in states(self._database).values() if state != "pending"]
        self.recorded.append(len(ended))
        self._clock.now += self._plan_seconds
        settlement = await super().plan(connection, update)
        return replace(settlement, requests=(request_of(update, self._body),) if self._body else ())


def request_of(update: PendingUpdate, body: bytes) -> NewRequest:
    """Return a request of a push."""
    return NewRequest(
        id=f"ex_{update.seq}",
        connection="c1",
        delivery=update.delivery,
        project="digits",
        trigger="train",
        target="train",
        subject="",
        body=body,
        lane=None,
        is_latest_only=False,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the worker's clock."""
    clock = Clock()
    monkeypatch.setattr("gateway.worker.worker.time", clock)
    return clock


BRANCHES = ("b1", "b2", "b3", "b4", "b5")


def test_what_is_planned_in_a_turn_is_recorded_at_its_end(database: Database, clock: Clock) -> None:
    """The push that is being planned when the turn ends is completed; the rest has another turn."""
    stages = Timed(database, clock, plan_seconds=5)
    pushed(database, *BRANCHES)
    asyncio.run(worked(database, stages, lambda: len(stages.planned) == 5))
    assert stages.recorded == [0, 0, 0, 3, 3]


def test_large_requests_are_recorded_before_more_are_planned(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they would fill the memory."""
    monkeypatch.setattr("gateway.worker.outcomes._MAX_BYTES", 8)
    stages = Timed(database, clock, body=b"4444")
    pushed(database, *BRANCHES)
    asyncio.run(worked(database, stages, lambda: len(stages.planned) == 5))
    assert stages.recorded == [0, 0, 0, 3, 3]


def test_the_stages_of_a_push_are_measured(database: Database, clock: Clock) -> None:
    """In seconds for the metrics, and in milliseconds in the log."""
    measured = (STAGE.labels("fetch"), STAGE.labels("plan"), PUSH_SECONDS)

    def sums() -> list[float]:
        return [one._sum.get() for one in measured]  # noqa: SLF001

    before = sums()
    pushed(database, "main", received_at=datetime.now(UTC) - timedelta(hours=1))
    with capture_logs() as logs:
        stages = Timed(database, clock, plan_seconds=3)
        asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "planned"))
    fetch, plan, whole = [round(after - was) for was, after in zip(before, sums(), strict=True)]
    assert (fetch, plan, whole // 60) == (7, 3, 60)
    [line] = [one for one in logs if one["event"] == "push settled"]
    assert (line["fetch_ms"], line["plan_ms"], line["since_received_ms"] // 60_000) == (7000, 3000, 60)


@pytest.mark.parametrize(("has_request", "has_event"), [(False, False), (True, False), (False, True)])
def test_the_relay_is_notified_if_there_is_something_to_publish(
    database: Database, *, has_request: bool, has_event: bool
) -> None:
    """A request or an event."""
    notified: list[str] = []
    event = NewEvent(
        id="ev_1", connection="c1", delivery="", name="push.fetched", project="digits", subject="", body=b"{}"
    )

    def announce(_connection: Connection, settlement: Settlement) -> Settlement:
        update = settlement.update
        return replace(
            settlement,
            requests=(request_of(update, b"{}"),) if has_request else (),
            events=(replace(event, delivery=update.delivery),) if has_event else (),
        )

    pushed(database, "main")

    done = lambda: states(database)["main"][0] == "planned" and is_released(database)  # noqa: E731
    asyncio.run(worked(database, Scripted(), done, announce=announce, notify=lambda: notified.append("yes")))
    assert notified == ["yes"] * (has_request or has_event)
