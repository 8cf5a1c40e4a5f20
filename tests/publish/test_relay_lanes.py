"""Several relays on one PostgreSQL, each of which publishes some of the connections."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import psycopg

from gateway.publish.relay import Relay
from gateway.publish.topology import Topology
from gateway.store import accept, executions, work_queue
from gateway.store.database import Database
from gateway.store.notify import Notifier
from gateway.store.outbox import outboxes
from testing import records
from testing.broker import Broker
from testing.postgres import Postgres, url_of
from tests.publish.runner import Runner
from tests.publish.test_relay import first_times, publisher

LANES = 4
NAMES = [f"{digit:x}" for digit in range(16)]
EACH = 10
POLL = 0.05


@asynccontextmanager
async def process(url: str, broker: Broker, topology: Topology) -> AsyncIterator[None]:
    """Relay in lanes, as a process does, until the block ends."""
    with closing(Database(url)) as database:
        relays = [
            Relay(outbox, publisher(broker.url, topology), Notifier().subscribe(), poll=POLL)
            for outbox in outboxes(database, lanes=LANES)
        ]
        running = [asyncio.create_task(relay.run()) for relay in relays]
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def connect(database: Database) -> dict[str, int]:
    """Store connections, one for each first digit of an id, with a push each."""
    updates = {}
    for name in NAMES:
        records.connection(database, name, name=f"acme/{name}")
        with database.writing() as conn:
            push = records.arrival(records.move(None, records.A), id=f"d-{name}", connection=name)
            accept.record(conn, [push])
            updates[name] = work_queue.pending(conn, name, limit=1)[0].seq
    return updates


def plan(database: Database, updates: dict[str, int], *, since: int) -> None:
    """Plan requests of all connections, in turn."""
    with database.writing() as conn:
        for number in range(since, since + EACH):
            for name, update in updates.items():
                request = records.request(
                    f"{name}/{number}", connection=name, delivery=f"d-{name}", trigger=f"t{number}"
                )
                executions.add(conn, [request], ref_update=update, now=records.NOW)


async def until_led(database: Database, *counts: int) -> None:
    """Return once the processes lead so many lanes each."""
    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ExclusiveLock'"
        " GROUP BY pid ORDER BY pid"
    )
    async with await psycopg.AsyncConnection.connect(url_of(database), autocommit=True) as conn:
        while [row[0] for row in await (await conn.execute(query)).fetchall()] != list(counts):  # noqa: ASYNC110 - locks send no notification
            await asyncio.sleep(POLL)


def test_processes_publish_each_request_once_and_take_over(
    postgres: Postgres, broker: Broker, topology: Topology
) -> None:
    """Each connection's requests come in planned order, also after the process of its lane has ended."""

    async def scenario(database: Database) -> None:
        updates = connect(database)
        url = url_of(database)
        async with Runner(broker.url) as runner, asyncio.timeout(120), process(url, broker, topology):
            async with process(url, broker, topology):
                await until_led(database, LANES // 2, LANES // 2)
                plan(database, updates, since=0)
                await runner.until_holds(topology.queue, len(NAMES) * EACH)
            plan(database, updates, since=EACH)
            await runner.until_holds(topology.queue, len(NAMES) * EACH * 2)
            messages = await runner.rest(topology.queue)
        assert set(Counter(message.message_id for message in messages).values()) == {1}
        assert first_times(messages) == {name: list(range(2 * EACH)) for name in NAMES}

    with closing(Database(postgres.database())) as database:
        database.migrate()
        asyncio.run(scenario(database))
