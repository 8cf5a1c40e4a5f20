"""What rings in one process is heard in another, through PostgreSQL; nothing here waits for a poll."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from gateway.errors import FetchError
from gateway.intake.accept import Accepter
from gateway.store.claims import Claims
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.doorbell import Doorbell, Listener, Wire
from gateway.store.executions import NewRequest
from gateway.store.work import PendingUpdate, Settlement, WorkQueue
from gateway.worker import Worker
from tests.postgres import Postgres, end_all_connections
from tests.service import wait_for
from tests.store.make import A, B, arrival, connection, move

# Nothing polls for so long that it could be what wakes somebody here.
NEVER = 3600.0
SECONDS = 30


@pytest.fixture
def processes(postgres: Postgres) -> Iterator[tuple[Database, Database]]:
    """Give two processes' views of one database."""
    url = postgres.database()
    one, other = Database(url), Database(url)
    one.migrate()
    yield one, other
    one.close()
    other.close()


@asynccontextmanager
async def wired(database: Database, **bells: Doorbell) -> AsyncIterator[None]:
    """Tie bells together with those of other processes; begin once it listens, which rings each bell."""
    listeners = [bell.listener() for bell in bells.values()]
    running = asyncio.create_task(Wire(database, bells).run())
    try:
        for listener in listeners:
            await heard(listener)
        yield
    finally:
        running.cancel()
        await asyncio.wait({running})


async def heard(listener: Listener) -> None:
    """Wait for a ring; fail where none comes."""
    async with asyncio.timeout(SECONDS):
        await listener.wait(None)


def _url(database: Database) -> str:
    return database.url.set(drivername="postgresql").render_as_string(hide_password=False)


def listeners(database: Database) -> int:
    """Return how many connections of this database listen."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    with database.reading() as transaction:
        return int(transaction.execute(text(query)).scalar_one())


def test_a_ring_is_heard_in_the_other_process(processes: tuple[Database, Database]) -> None:
    """Of the same bell, in either direction, again and again; and again once all connections were ended."""
    one, other = processes

    async def scenario() -> None:
        here, there = Doorbell(), Doorbell()
        listeners = [here.listener(), there.listener()]
        async with wired(one, pushes=here), wired(other, pushes=there):
            for listener in listeners:
                await heard(listener)  # the ring of the beginning
            for _ in range(3):
                here.ring()
                await heard(listeners[1])
                there.ring(by=listeners[1])
                await heard(listeners[0])
            assert await asyncio.to_thread(end_all_connections, _url(one)) >= 2
            for listener in listeners:
                await heard(listener)  # it listens again, and nobody knows what was told meanwhile
            here.ring(by=listeners[0])
            await heard(listeners[1])
            there.ring(by=listeners[1])
            await heard(listeners[0])

    asyncio.run(scenario())


def test_the_wire_waits_for_a_server_that_is_away() -> None:
    """As long as it takes; then everybody looks once, for what was told meanwhile."""
    with Postgres() as server:
        database = Database(server.database())

        async def scenario() -> None:
            bell = Doorbell()
            listener = bell.listener()
            async with wired(database, pushes=bell):
                await heard(listener)
                await asyncio.to_thread(server.stop)
                bell.ring()
                await heard(listener)
                await asyncio.to_thread(server.start)
                await heard(listener)

        asyncio.run(scenario())
        database.close()


def test_the_wire_leaves_no_connection(processes: tuple[Database, Database]) -> None:
    """It is closed with the process, not forgotten in the server."""
    one, other = processes

    async def scenario() -> None:
        async with wired(one, pushes=Doorbell()):
            assert listeners(other) == 1

    asyncio.run(scenario())
    wait_for(lambda: listeners(other) == 0, "the server has seen the connection end")


class OneRequest:
    """Steps that ask for one execution at each push."""

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Have everything."""
        progress(f"{connection.id}: {len(updates)}")
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Ask for it."""
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
    """And what is planned there wakes who follows requests here, as the relay does."""
    door, back = processes
    connection(door)

    async def scenario() -> None:
        pushes, requests = Doorbell(), Doorbell()
        relay = requests.listener()
        accepter = Accepter(door, rings=pushes.ring)
        accepter.start()
        news, planned = Doorbell(), Doorbell()
        working = Worker(
            name="w",
            queue=WorkQueue(back, Claims(process="back")),
            steps=OneRequest(),
            news=news.listener(),
            rings=planned.ring,
            poll=NEVER,
        )
        async with wired(door, pushes=pushes, requests=requests), wired(back, pushes=news, requests=planned):
            await heard(relay)  # the ring of the beginning
            running = asyncio.create_task(working.run())
            for before, after in ((A, B), (B, A)):
                await accepter.accept(arrival(move(before, after), received_at=datetime.now(UTC)))
                await heard(relay)
            running.cancel()
            await asyncio.wait({running})
        await accepter.stop()
        await door.aclose()

    asyncio.run(scenario())
