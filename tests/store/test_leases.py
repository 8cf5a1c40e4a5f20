"""Leases among processes: renewed by a heartbeat, expired without one, and never held by two."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import update

from gateway.errors import FetchError
from gateway.metrics import REGISTRY
from gateway.store import accept, deliveries, work_queue
from gateway.store.claims import Claims
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.tables import leases
from gateway.store.work_queue import LeaseLost, PendingUpdate, Settlement
from gateway.worker import worker
from gateway.worker.worker import Worker
from testing.postgres import Postgres
from testing.records import NOW, A, B, arrival, connection, move
from testing.service import wait_for
from tests.store.claiming import first

LEASE = timedelta(seconds=60)
PROCESSES = 4


def claim(database: Database, owner: str, *, seconds: int = 0) -> str | None:
    """Claim as a worker does, so many seconds after NOW."""
    now = NOW + timedelta(seconds=seconds)
    with database.writing() as conn:
        return first(Claims(process=owner).claim(conn, owner=owner, now=now, until=now + LEASE))


def push(database: Database, *names: str, now: datetime = NOW) -> None:
    """Make connections, and record a push to each."""
    for name in names:
        connection(database, name, created_at=now, updated_at=now)
    with database.writing() as conn:
        pushes = [arrival(move(A, B), connection=name, received_at=now) for name in names]
        accept.record(conn, pushes)


def test_a_lease_that_is_renewed_is_not_taken_over(database: Database) -> None:
    """Until a minute after the last renewal."""
    push(database, "c1")
    assert claim(database, "w1") == "c1"
    with database.writing() as conn:
        work_queue.renew(conn, "c1", owner="w1", until=NOW + timedelta(seconds=100))
    assert claim(database, "w2", seconds=99) is None
    assert claim(database, "w2", seconds=101) == "c1"


SOON = NOW + timedelta(seconds=62)
ENDINGS: dict[str, Callable[..., None]] = {
    "renew": partial(work_queue.renew, until=SOON + LEASE),
    "release": partial(work_queue.release, now=SOON),
    "postpone": partial(work_queue.postpone, updates=(), due_at=SOON, reason="remote down"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_who_has_lost_a_lease_changes_nothing_about_it(database: Database, ending: str) -> None:
    """It gets an error, and the other worker goes on."""
    push(database, "c1")
    claim(database, "w1")
    assert claim(database, "w2", seconds=61) == "c1"
    with pytest.raises(LeaseLost), database.writing() as conn:
        ENDINGS[ending](conn, "c1", owner="w1")
    assert claim(database, "w3", seconds=63) is None


@pytest.fixture
def processes(postgres: Postgres) -> Iterator[Sequence[Database]]:
    """Return several processes' views of one PostgreSQL."""
    url = postgres.database()
    with ExitStack() as stack:
        views = [stack.enter_context(closing(Database(url))) for _ in range(PROCESSES)]
        views[0].migrate()
        yield views


def test_claims_at_the_same_moment_never_get_the_same_connection(processes: Sequence[Database]) -> None:
    """Each connection is taken once, however many processes claim it; none is left out."""
    names = [f"c{number}" for number in range(40)]
    push(processes[0], *names)

    def take_all(numbered: tuple[int, Database]) -> list[str]:
        number, database = numbered
        taken = []
        while (name := claim(database, f"w{number}")) is not None:
            taken.append(name)
        return taken

    with ThreadPoolExecutor(PROCESSES) as threads:
        taken = [name for part in threads.map(take_all, enumerate(processes)) for name in part]
    rest = take_all((0, processes[0]))
    assert sorted(taken + rest) == sorted(names)


class Waits:
    """Stages whose fetch begins, and ends when it is released."""

    def __init__(self, name: str) -> None:
        """Plan under this name."""
        self.name = name
        self.began, self.may_end = asyncio.Event(), asyncio.Event()

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Wait."""
        progress(f"{connection.id}: {len(updates)}")
        self.began.set()
        await self.may_end.wait()
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Run nothing."""
        return Settlement(update=update, state="planned", reason=f"{connection.id} by {self.name}")


def expire(database: Database, now: datetime) -> None:
    """Expire the leases, as after a minute."""
    with database.writing() as conn:
        conn.execute(update(leases).values(expires_at=now - timedelta(seconds=1)))


def test_the_heartbeat_of_one_process_keeps_another_away(
    processes: Sequence[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it works, however long that takes."""
    monkeypatch.setattr(worker, "_RENEW_SECONDS", 0.05)
    push(processes[0], "c1", now=datetime.now(UTC))

    async def scenario() -> tuple[datetime, datetime]:
        stages = Waits("w1")
        running = asyncio.create_task(working(processes[0], stages).run())
        async with asyncio.timeout(30):
            await stages.began.wait()
            first = await asyncio.to_thread(expires_at, processes[1])
            later = await asyncio.to_thread(
                wait_for, lambda: renewed(processes[1], first), "the lease is renewed"
            )
        running.cancel()
        await asyncio.wait({running})
        return first, later

    first, later = asyncio.run(scenario())
    assert later > first


def renewed(database: Database, since: datetime) -> datetime | None:
    """Return until when the lease holds, if that is later than before."""
    found = expires_at(database)
    return found if found > since else None


def expires_at(database: Database) -> datetime:
    """Return until when the lease of the one connection holds."""
    with database.reading() as conn:
        found: datetime = conn.execute(leases.select()).one().expires_at
    return found


def test_another_process_takes_over_what_hangs_when_its_lease_has_expired(
    processes: Sequence[Database],
) -> None:
    """The first one's results, when it wakes up, are ignored."""
    push(processes[0], "c1", now=datetime.now(UTC))
    before = REGISTRY.get_sample_value("pushgate_leases_expired_total") or 0

    async def scenario() -> None:
        hanging, quick = Waits("first"), Waits("second")
        quick.may_end.set()
        tasks = [asyncio.create_task(working(processes[0], hanging).run())]
        async with asyncio.timeout(30):
            await hanging.began.wait()
            await asyncio.to_thread(expire, processes[1], datetime.now(UTC))
            tasks.append(asyncio.create_task(working(processes[1], quick).run()))
            await asyncio.to_thread(wait_for, lambda: settled(processes[2]), "the second one has settled it")
            hanging.may_end.set()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(scenario())
    [one] = settled(processes[2])
    assert (one.state, one.reason) == ("planned", "c1 by second")
    assert REGISTRY.get_sample_value("pushgate_leases_expired_total") == before + 1


def settled(database: Database) -> Sequence[deliveries.RecordedUpdate]:
    """Return the updates that have ended."""
    with database.reading() as conn:
        found = deliveries.page(conn, connection="c1", verdict=None, before=None, limit=10)
    return [one for delivery in found for one in delivery.updates if one.state != "pending"]


def working(database: Database, stages: Waits) -> Worker:
    """Return a worker of a process."""
    notifier = Notifier()
    return Worker(
        name=stages.name,
        database=database,
        claims=Claims(process=stages.name),
        stages=stages,
        wakeups=notifier.subscribe(),
        notify=notifier.notify,
    )
