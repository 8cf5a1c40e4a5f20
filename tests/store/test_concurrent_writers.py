"""Several doors on one PostgreSQL: what is judged at the same time is judged as if one after the other."""

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
def doors(postgres: Postgres) -> Iterator[list[Database]]:
    """Give four processes' views of one database."""
    url = postgres.database()
    doors = [Database(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        # All start at once: one migrates, the others wait for it.
        list(threads.map(Database.migrate, doors))
    yield doors
    for door in doors:
        door.close()


def record_at_once(doors: list[Database], batches: list[list[NewDelivery]]) -> list[Receipt]:
    """Record batches by all doors at once."""

    def record(numbered: tuple[int, list[NewDelivery]]) -> list[Receipt]:
        number, batch = numbered
        with doors[number % len(doors)].writing() as conn:
            return accept.record(conn, batch)

    with ThreadPoolExecutor(len(doors)) as threads:
        return [receipt for part in threads.map(record, enumerate(batches)) for receipt in part]


def test_one_push_told_to_all_doors_is_accepted_once(doors: list[Database]) -> None:
    """By the provider's id, and by what it says."""
    connection(doors[0])
    same_id = [[arrival(move(IDS[0], IDS[1]), provider_delivery_id="one")] for _ in range(20)]
    once = ["accepted", *["duplicate"] * 19]
    assert sorted(one.verdict for one in record_at_once(doors, same_id)) == once
    same_push = [[arrival(move(IDS[1], IDS[2]))] for _ in range(20)]
    assert (
        sorted(one.verdict for one in record_at_once(doors, same_push)) == ["accepted"] + ["duplicate"] * 19
    )


def test_moves_of_one_ref_are_counted_one_by_one(doors: list[Database]) -> None:
    """Whichever door takes them, in whatever order: no two have the same number, the last one the highest."""
    connection(doors[0])
    moves = [[arrival(move(IDS[number], IDS[number + 1]))] for number in range(40)]
    assert {one.verdict for one in record_at_once(doors, moves)} == {"accepted"}
    with doors[0].reading() as conn:
        found = deliveries.page(conn, connection="c1", verdict=None, before=None, limit=100)
    numbers = {update.generation: update.update.after for one in found for update in one.updates}
    assert len(numbers) == 40
    assert numbers[max(numbers)] == IDS[40]


def test_doors_that_take_many_connections_never_wait_in_a_circle(doors: list[Database]) -> None:
    """Batches name connections in any order; the locks are taken in one."""
    for name in ("a", "b", "c"):
        connection(doors[0], name)
    batches = [
        [
            arrival(move(IDS[0], IDS[number + 1]), connection=name)
            for name in ("abc", "cba", "bca")[number % 3]
        ]
        for number in range(30)
    ]
    assert len(record_at_once(doors, batches)) == 90
