"""Several processes on one PostgreSQL: webhooks of a source arrive while workers decide."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import event, select, text, update

from gateway.store import accept
from gateway.store.database import Database
from gateway.store.tables import deliveries, ref_updates, secrets, waiting_deliveries
from testing.postgres import Postgres
from testing.records import NOW, A, B, C, arrival, connection
from testing.service import wait_for
from tests.intake.local import opened
from tests.worker.acme import Acme, add, found, set_rules

REPOSITORIES = range(1, 13)


@pytest.fixture
def processes(postgres: Postgres) -> Iterator[list[Database]]:
    """Return three processes' views of one database with two sources."""
    url = postgres.database()
    processes = [Database(url) for _ in range(3)]
    processes[0].migrate()
    add(processes[0])
    add(processes[0], "c2", "labs")
    yield processes
    for process in processes:
        process.close()


def is_waiting(database: Database) -> bool:
    """Return whether a transaction waits for another."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with database.reading() as conn:
        return conn.execute(text(waiting)).first() is not None


def test_a_push_during_the_decision_waits_in_no_circle(processes: list[Database]) -> None:
    """It is recorded once the decision is, and arrives at the connection."""
    here, _, third = processes

    async def push(before: str | None, after: str) -> int:
        web = Database(here.url.render_as_string(hide_password=False))
        async with opened(web) as endpoint:
            answer = await Acme(web, endpoint).push(1, "acme/ml-a", before, after)
        await web.aclose()
        return answer.status

    def push_meanwhile(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM waiting_deliveries") and not pushed:
            pushed.append(threads.submit(lambda: asyncio.run(push(A, B))))
            wait_for(lambda: is_waiting(third) or pushed[0].done(), "the push waits for the decision")

    async def decide() -> None:
        async with opened(here) as endpoint:
            await Acme(here, endpoint).decide()

    pushed: list[Any] = []
    assert asyncio.run(push(None, A)) == 202
    with ThreadPoolExecutor(1) as threads:
        event.listen(here.engine, "before_cursor_execute", push_meanwhile)
        asyncio.run(decide())
        event.remove(here.engine, "before_cursor_execute", push_meanwhile)
        assert pushed[0].result() == 202
    asyncio.run(decide())
    [made] = found(third).values()
    with third.reading() as conn:
        moves = conn.execute(select(ref_updates.c.connection, ref_updates.c.after)).all()
    assert sorted(map(tuple, moves)) == [(made.id, A), (made.id, B)]


def test_the_secrets_of_two_sources_are_locked_in_one_order(processes: list[Database]) -> None:
    """Deliveries of both sources are in one batch, in any order."""
    here, there, third = processes
    for name in ("a", "b"):
        connection(here, name)
    with here.writing() as conn:
        first, second = sorted(conn.execute(select(secrets.c.id)).scalars())

    def record() -> None:
        with there.writing() as conn:
            batch = [arrival(connection="a", secret=second), arrival(connection="b", secret=first)]
            accept.record(conn, batch)

    with ThreadPoolExecutor(1) as threads, here.writing() as conn:
        used = update(secrets).values(last_used_at=NOW)
        conn.execute(used.where(secrets.c.id == first))
        recorded = threads.submit(record)
        wait_for(lambda: is_waiting(third), "the batch waits for the secret")
        conn.execute(used.where(secrets.c.id == second))
        conn.commit()
        recorded.result()


def test_each_push_runs_once_at_its_repository(processes: list[Database]) -> None:
    """No transaction waits for another in a circle, and nothing is lost in between."""

    async def pushed() -> None:
        async with AsyncExitStack() as stack:
            endpoints = [await stack.enter_async_context(opened(process)) for process in processes]
            members = [
                Acme(process, endpoint) for process, endpoint in zip(processes, endpoints, strict=True)
            ]
            sending = asyncio.Event()

            async def push(number: int) -> None:
                owner, source = (("acme", "c1"), ("labs", "c2"))[number % 2]
                moves = [(None, A), (A, B), (B, C)]
                answers = await asyncio.gather(
                    *(
                        members[(number + index) % 3].push(number, f"{owner}/ml-{number}", *move, to=source)
                        for index, move in enumerate(moves)
                    )
                )
                assert {answer.status for answer in answers} == {202}

            async def decide(member: Acme) -> None:
                while not sending.is_set():
                    await member.decide()
                    await asyncio.sleep(0)
                await member.decide()

            async def change() -> None:
                for follows in ((), ("main",), ()):
                    rules = [{"match": ["ml-*"], "project": "team-{name}", "follows": follows}]
                    await asyncio.to_thread(set_rules, processes[0], rules)

            deciding = [asyncio.create_task(decide(member)) for member in members]
            await asyncio.gather(change(), *map(push, REPOSITORIES))
            sending.set()
            await asyncio.gather(*deciding)
            for process in processes:
                await process.aclose()

    asyncio.run(pushed())
    with processes[0].reading() as conn:
        made = {one.id: one for one in found(processes[0]).values()}
        assert {one.repository_id for one in made.values()} == set(map(str, REPOSITORIES))
        assert conn.execute(select(waiting_deliveries)).all() == []
        assert set(conn.execute(select(deliveries.c.connection)).scalars()) == set(made)
        moves = conn.execute(select(ref_updates.c.connection, ref_updates.c.after)).all()
        assert sorted(map(tuple, moves)) == sorted((id_, after) for id_ in made for after in (A, B, C))
