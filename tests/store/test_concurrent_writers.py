"""Several web processes on one PostgreSQL: concurrent batches have the result of sequential ones."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.store import accept, deliveries
from gateway.store.accept import NewDelivery, Receipt
from gateway.store.database import Database
from testing.postgres import Postgres
from testing.records import arrival, connection, move

IDS = [f"{number:040x}" for number in range(1, 42)]


@pytest.fixture
def processes(postgres: Postgres) -> Iterator[list[Database]]:
    """Return four processes' views of one database."""
    url = postgres.database()
    processes = [Database(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        # All start at once: one migrates, the others wait for it.
        list(threads.map(Database.migrate, processes))
    yield processes
    for process in processes:
        process.close()


def record_at_once(processes: list[Database], batches: list[list[NewDelivery]]) -> list[Receipt]:
    """Record batches from all processes at once."""

    def record(numbered: tuple[int, list[NewDelivery]]) -> list[Receipt]:
        number, batch = numbered
        with processes[number % len(processes)].writing() as conn:
            return accept.record(conn, batch)

    with ThreadPoolExecutor(len(processes)) as threads:
        return [receipt for part in threads.map(record, enumerate(batches)) for receipt in part]


def test_one_push_sent_to_all_processes_is_accepted_once(processes: list[Database]) -> None:
    """By the provider's id, and by its content."""
    connection(processes[0])
    same_id = [[arrival(move(IDS[0], IDS[1]), provider_delivery_id="one")] for _ in range(20)]
    once = ["accepted", *["duplicate"] * 19]
    assert sorted(one.verdict for one in record_at_once(processes, same_id)) == once
    same_push = [[arrival(move(IDS[1], IDS[2]))] for _ in range(20)]
    assert (
        sorted(one.verdict for one in record_at_once(processes, same_push))
        == ["accepted"] + ["duplicate"] * 19
    )


def test_moves_of_one_ref_are_counted_one_by_one(processes: list[Database]) -> None:
    """In any process and order, no two have the same number, and the last has the highest."""
    connection(processes[0])
    moves = [[arrival(move(IDS[number], IDS[number + 1]))] for number in range(40)]
    assert {one.verdict for one in record_at_once(processes, moves)} == {"accepted"}
    with processes[0].reading() as conn:
        found = deliveries.page(conn, connection="c1", verdict=None, before=None, limit=100)
    numbers = {update.generation: update.update.after for one in found for update in one.updates}
    assert len(numbers) == 40
    assert numbers[max(numbers)] == IDS[40]


def test_writers_of_many_connections_never_wait_in_a_circle(processes: list[Database]) -> None:
    """Batches contain connections in any order; the locks are taken in a fixed one."""
    for name in ("a", "b", "c"):
        connection(processes[0], name)
    batches = [
        [
            arrival(move(IDS[0], IDS[number + 1]), connection=name)
            for name in ("abc", "cba", "bca")[number % 3]
        ]
        for number in range(30)
    ]
    assert len(record_at_once(processes, batches)) == 90
