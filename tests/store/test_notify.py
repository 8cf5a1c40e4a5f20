"""Notifications reach other processes through PostgreSQL; nothing here waits for a poll."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from gateway.errors import FetchError, StoreUnavailable
from gateway.intake.group_commit import DeliveryWriter
from gateway.store import notify
from gateway.store.claims import Claims
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.executions import NewRequest
from gateway.store.notify import Notifier, PostgresBridge, Subscription
from gateway.store.work_queue import PendingUpdate, Settlement
from gateway.worker.worker import Worker
from testing.postgres import Postgres, end_all_connections, url_of
from testing.records import A, B, arrival, connection, move
from testing.service import wait_for

# The poll interval is so long that no poll can be the cause of a wake-up here.
NEVER = 3600.0
SECONDS = 30


@pytest.fixture
def processes(postgres: Postgres) -> Iterator[tuple[Database, Database]]:
    """Return two processes' views of one database."""
    url = postgres.database()
    one, other = Database(url), Database(url)
    one.migrate()
    yield one, other
    one.close()
    other.close()


@asynccontextmanager
async def wired(database: Database, **notifiers: Notifier) -> AsyncIterator[None]:
    """Connect notifiers with those of other processes; begin once it listens, which notifies each."""
    subscriptions = [notifier.subscribe() for notifier in notifiers.values()]
    running = asyncio.create_task(PostgresBridge(database, notifiers).run())
    try:
        for subscription in subscriptions:
            await notified(subscription)
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def notified(subscription: Subscription) -> None:
    """Wait for a notification; fail if none comes."""
    async with asyncio.timeout(SECONDS):
        await subscription.wait(None)


def subscriptions(database: Database) -> int:
    """Return how many connections of this database listen."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    with database.reading() as conn:
        return int(conn.execute(text(query)).scalar_one())


def test_a_notification_reaches_the_other_process(processes: tuple[Database, Database]) -> None:
    """For the same notifier, in either direction, repeatedly; also after all connections were ended."""
    one, other = processes

    async def scenario() -> None:
        here, there = Notifier(), Notifier()
        subscriptions = [here.subscribe(), there.subscribe()]
        async with wired(one, pushes=here), wired(other, pushes=there):
            for subscription in subscriptions:
                await notified(subscription)  # the notification at the start
            for _ in range(3):
                here.notify()
                await notified(subscriptions[1])
                there.notify(source=subscriptions[1])
                await notified(subscriptions[0])
            assert await asyncio.to_thread(end_all_connections, url_of(one)) >= 2
            for subscription in subscriptions:
                await notified(subscription)  # it listens again; notifications sent meanwhile are unknown
            here.notify(source=subscriptions[0])
            await notified(subscriptions[1])
            there.notify(source=subscriptions[1])
            await notified(subscriptions[0])

    asyncio.run(scenario())


def test_the_wire_waits_for_a_server_that_is_away() -> None:
    """As long as it takes; then every notifier notifies once, for those missed meanwhile."""
    with Postgres() as server:
        database = Database(server.database())

        async def scenario() -> None:
            notifier = Notifier()
            subscription = notifier.subscribe()
            async with wired(database, pushes=notifier):
                await notified(subscription)
                await asyncio.to_thread(server.stop)
                notifier.notify()
                await notified(subscription)
                await asyncio.to_thread(server.start)
                await notified(subscription)

        asyncio.run(scenario())
        database.close()


def test_the_wire_leaves_no_connection(processes: tuple[Database, Database]) -> None:
    """It is closed with the process, and not left at the server."""
    one, other = processes

    async def scenario() -> None:
        async with wired(one, pushes=Notifier()):
            assert subscriptions(other) == 1

    asyncio.run(scenario())
    wait_for(lambda: subscriptions(other) == 0, "the server has seen the connection end")


class OneRequest:
    """Stages that request one execution for each push."""

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Have everything."""
        progress(f"{connection.id}: {len(updates)}")
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Request it."""
        request = NewRequest(
            id=f"request-{update.seq}",
            connection=connection.id,
            delivery=update.delivery,
            project=connection.project,
            trigger="train@main",
            target="train",
            subject=connection.name,
            body=b"{}",
        )
        return Settlement(update=update, state="planned", reason="1 request", requests=(request,))


def test_what_one_process_accepts_wakes_the_worker_of_another(
    processes: tuple[Database, Database],
) -> None:
    """And a plan there wakes the followers of requests here, such as the relay."""
    web, back = processes
    connection(web)

    async def scenario() -> None:
        pushes, requests = Notifier(), Notifier()
        relay = requests.subscribe()
        writer = DeliveryWriter(web, notify=pushes.notify)
        writer.start()
        wakeups, planned = Notifier(), Notifier()
        working = Worker(
            name="w",
            database=back,
            claims=Claims(process="back"),
            stages=OneRequest(),
            wakeups=wakeups.subscribe(),
            notify=planned.notify,
            poll_seconds=NEVER,
        )
        async with (
            wired(web, pushes=pushes, requests=requests),
            wired(back, pushes=wakeups, requests=planned),
        ):
            await notified(relay)  # the notification at the start
            running = asyncio.create_task(working.run())
            for before, after in ((A, B), (B, A)):
                await writer.accept(arrival(move(before, after), received_at=datetime.now(UTC)))
                await notified(relay)
            running.cancel()
            await asyncio.wait({running})
        await writer.stop()
        await web.aclose()

    asyncio.run(scenario())


class Line(Database):
    """A database whose notices the test sends and reads, instead of a server."""

    def __init__(self, *outcomes: Exception | None) -> None:
        """Set the outcome of each attempt to listen; after the last one, listen for ever."""
        super().__init__("sqlite:////nowhere/line.db")
        self.outcomes = list(outcomes)
        self.notices: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.sent: list[tuple[str, str]] = []
        self.refusals: list[Exception] = []

    async def notify(self, channel: str, payload: str) -> None:
        """Record the notice, or raise the error."""
        if self.refusals:
            raise self.refusals.pop()
        self.sent.append((channel, payload))

    @asynccontextmanager
    async def listening(self, channels: Sequence[str]) -> AsyncIterator[AsyncIterator[tuple[str, str]]]:
        """Yield the test's notices on these channels."""
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome

        async def notices() -> AsyncIterator[tuple[str, str]]:
            while True:
                channel, payload = await self.notices.get()
                if payload == "end":
                    return
                assert channel in channels
                yield channel, payload

        yield notices()


def was_notified(subscription: Subscription) -> bool:
    """Return whether there was a notification; if so, clear it."""
    was = subscription._wakeup.is_set()  # noqa: SLF001 - to see that there was none
    subscription._wakeup.clear()  # noqa: SLF001
    return was


async def until(is_so: Callable[[], bool]) -> None:
    """Let other tasks run until a condition is true."""
    async with asyncio.timeout(SECONDS):
        while not is_so():  # noqa: ASYNC110 - nobody could set an event
            await asyncio.sleep(0)


def test_a_notification_wakes_every_subscription_but_its_source() -> None:
    """Once for all notifications between two waits, and without one a wait ends at its limit."""

    async def scenario() -> None:
        notifier = Notifier()
        source, first, second = (notifier.subscribe() for _ in range(3))
        notifier.notify(source=source)
        notifier.notify(source=source)
        assert [was_notified(one) for one in (source, first, second)] == [False, True, True]
        notifier.notify()
        assert [was_notified(one) for one in (source, first, second)] == [True, True, True]
        notifier.notify()
        await first.wait(NEVER)
        await first.wait(0.001)
        assert not was_notified(first)
        assert was_notified(second)

    asyncio.run(scenario())


def test_notices_of_others_notify_and_ones_own_do_not() -> None:
    """On their own channel only; a local notification has woken this process already."""

    async def scenario() -> None:
        line, pushes, requests = Line(), Notifier(), Notifier()
        push, request = pushes.subscribe(), requests.subscribe()
        async with wired(line, pushes=pushes, requests=requests):
            was_notified(push), was_notified(request)
            pushes.notify()
            await until(lambda: bool(line.sent))
            [(channel, own)] = line.sent
            assert channel == "pushes"
            assert was_notified(push)
            # Names that sort before and after each other name.
            for sender in (" ", "~"):
                line.notices.put_nowait(("pushes", own))
                line.notices.put_nowait(("requests", sender))
                await notified(request)
                assert not was_notified(push)
            line.notices.put_nowait(("pushes", "~"))
            await notified(push)
            assert not was_notified(request)
        # Notices of other processes are not sent back.
        assert line.sent == [("pushes", own)]

    asyncio.run(scenario())


def test_two_processes_notify_under_different_names() -> None:
    """Otherwise each would ignore the other."""

    async def name() -> str:
        line, notifier = Line(), Notifier()
        async with wired(line, pushes=notifier):
            notifier.notify()
            await until(lambda: bool(line.sent))
        return line.sent[0][1]

    assert asyncio.run(name()) != asyncio.run(name())


def test_listening_is_tried_again_after_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ended it; once it listens again, each notifier notifies; the next failure is a first one."""
    waits: list[int] = []

    def backoff(failures: int, *, first: float, longest: float) -> float:
        assert 0 < first < longest <= 60
        waits.append(failures)
        return 0.0

    monkeypatch.setattr("gateway.store.notify.backoff", backoff)
    away, bug = StoreUnavailable("away"), ValueError("a bug")

    async def scenario() -> None:
        line, pushes, requests = Line(away, bug, away, None, away, None), Notifier(), Notifier()
        push, request = pushes.subscribe(), requests.subscribe()
        async with wired(line, pushes=pushes, requests=requests):
            assert waits == [0, 1, 2]
            was_notified(push), was_notified(request)
            line.notices.put_nowait(("pushes", "end"))
            await notified(push)
            await notified(request)
            assert waits == [0, 1, 2, 0, 1]

    asyncio.run(scenario())


def test_a_notification_that_cannot_be_sent_keeps_none_from_being_sent_later() -> None:
    """Other processes poll meanwhile."""

    async def scenario() -> None:
        line, notifier = Line(), Notifier()
        async with wired(line, pushes=notifier):
            for error in (StoreUnavailable("away"), ValueError("a bug")):
                line.refusals.append(error)
                notifier.notify()
                await until(lambda: not line.refusals)
                notifier.notify()
                await until(lambda: bool(line.sent))
                line.sent.clear()

    asyncio.run(scenario())


def test_a_burst_is_sent_as_a_few_notifications() -> None:
    """Each one wakes all workers of all processes."""

    async def scenario() -> None:
        line, notifier = Line(), Notifier()
        async with wired(line, pushes=notifier):
            for _ in range(500):
                notifier.notify()
                await asyncio.sleep(0)
            assert len(line.sent) < 100
            line.sent.clear()
            # The last one is still sent, before the poll after a second would find it.
            notifier.notify()
            await until(lambda: bool(line.sent))
            assert 0 < notify._PAUSE_SECONDS < 1  # noqa: SLF001 - to measure it would depend on the machine

    asyncio.run(scenario())
