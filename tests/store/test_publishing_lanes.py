"""Publishing lanes: each connection is in one, and each is led by one process."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest
from sqlalchemy import literal, select

from gateway.settings import Settings
from gateway.store.database import Database, Lock
from gateway.store.ids import connection_id
from gateway.store.leading import Leading
from gateway.store.publishing_lanes import SINGLE, PublishingLane
from testing.postgres import Postgres, end_all_connections, url_of
from testing.service import wait_for

COUNTS = (2, 4, 8, 16)
IDS = [*(f"{digit:x}1" for digit in range(16)), connection_id(), "", "A1", "F1", "g", "~", "-", "ö"]


def lanes(count: int) -> list[PublishingLane]:
    """Return so many lanes."""
    return [PublishingLane(number, count) for number in range(count)]


def test_each_connection_is_in_one_lane_of_each_number(url: str) -> None:
    """And its lane of four is within its lane of two: the locks rely on it. Ids of any form have a lane."""
    with closing(Database(url)) as database, database.reading() as conn:
        for name in IDS:
            found = {
                count: [
                    lane.number
                    for lane in lanes(count)
                    if conn.execute(select(lane.includes(literal(name)))).scalar()
                ]
                for count in COUNTS
            }
            [smallest] = found[16]
            assert found == {count: [smallest * count // 16] for count in COUNTS}, name


@pytest.mark.parametrize("count", [3, 5, 32])
def test_only_these_numbers_of_lanes_are_accepted(count: int) -> None:
    """Those whose lanes divide one another."""
    with pytest.raises(ValueError, match="relay_lanes"):
        Settings(relay_lanes=count)


@pytest.fixture
def processes(postgres: Postgres) -> Iterator[list[Database]]:
    """Return three processes' views of one server."""
    url = postgres.database()
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Database(url))) for _ in range(3)]


def led(database: Database, count: int) -> list[int]:
    """Let a process look after all its lanes; return the numbers of those that it leads."""
    return [lane.number for lane in lanes(count) if asyncio.run(database.is_leader(Lock.RELAY, lane))]


def test_processes_share_the_lanes_and_take_them_over(processes: list[Database]) -> None:
    """The first gives up what exceeds its share; the lanes of a process that leaves go to the others."""
    first, second, third = processes
    assert led(first, 4) == [0, 1, 2, 3]
    assert led(second, 4) == []
    assert led(first, 4) == [2, 3]
    assert led(second, 4) == [0, 1]
    with first.reading() as mine, second.reading() as others:
        assert first.may_lead(mine, Lock.RELAY, PublishingLane(2, 4))
        assert not second.may_lead(others, Lock.RELAY, PublishingLane(2, 4))
    # Without the broker, it leaves them one after another.
    asyncio.run(second.step_down(Lock.RELAY, PublishingLane(0, 4)))
    assert led(first, 4) == [0, 2, 3]
    asyncio.run(second.step_down(Lock.RELAY, PublishingLane(1, 4)))
    asyncio.run(third.step_down(Lock.RELAY, PublishingLane(1, 4)))
    assert led(first, 4) == [0, 1, 2, 3]
    first.close()
    wait_for(lambda: led(third, 4) == [0, 1, 2, 3], "the server has noticed that the first has left")
    end_all_connections(url_of(second))
    assert led(second, 4) == [0, 1, 2, 3]
    assert led(third, 4) == []


def test_different_numbers_of_lanes_never_overlap(processes: list[Database]) -> None:
    """A process leads nothing of which another leads a part, or the whole."""
    one, two, four = processes
    assert led(one, 1) == [0]
    assert led(two, 2) == led(four, 4) == []
    one.close()
    lane = PublishingLane(2, 4)
    wait_for(lambda: asyncio.run(four.is_leader(Lock.RELAY, lane)), "the server has noticed that it left")
    assert led(two, 2) == [0]
    assert led(four, 4) == [2, 3]
    with two.reading() as conn:
        assert not two.may_lead(conn, Lock.RELAY, SINGLE)
        assert not two.may_lead(conn, Lock.RELAY, PublishingLane(1, 2))
    two.close()
    wait_for(lambda: led(four, 4) == [0, 1, 2, 3], "the server has noticed that it has left")


def test_a_process_has_one_connection_for_all_its_locks(processes: list[Database]) -> None:
    """And none once it holds nothing."""
    leading = Leading(processes[0].engine)
    for lane in lanes(4):
        assert leading.hold(Lock.RELAY, lane) is not None
    assert processes[0].engine.pool.checkedout() == 1  # type: ignore[attr-defined]
    for lane in lanes(4):
        leading.step_down(Lock.RELAY, lane)
    assert processes[0].engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert led(processes[1], 1) == [0]
