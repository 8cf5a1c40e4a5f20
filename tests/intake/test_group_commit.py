"""The writer of deliveries: shared transactions, the result for each request, and failures."""

import asyncio
import itertools
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVarTuple

import pytest
import sqlalchemy
import structlog
from sqlalchemy import select

from gateway.errors import StoreUnavailable
from gateway.intake.group_commit import DeliveryWriter
from gateway.metrics import REGISTRY
from gateway.store.accept import Decision, NewDelivery, Receipt
from gateway.store.database import Database
from gateway.store.tables import deliveries
from testing.records import A, B, arrival, connection, move

Ts = TypeVarTuple("Ts")
# Nothing here takes this long unless something is broken.
PATIENCE = 10.0
NEVER = 3600.0


class WatchedDatabase(Database):
    """A database that notes the deliveries of each transaction."""

    def __init__(self, url: str) -> None:
        """Begin without transactions."""
        super().__init__(url)
        self.batches: list[list[str]] = []
        self.attempts = 0

    async def write_inline(
        self, decide: Callable[[sqlalchemy.Connection], Any], keep: Callable[..., None]
    ) -> Any:
        """Note the deliveries, and record them."""
        self.attempts += 1

        def noted(conn: sqlalchemy.Connection) -> Any:
            decision: Decision = decide(conn)
            self.batches.append([one.id for one in decision.batch])
            return decision

        return await super().write_inline(noted, keep)


@pytest.fixture
def database(migrated: Path, tmp_path: Path) -> Iterator[WatchedDatabase]:
    """Return a database with the connection c1."""
    database = WatchedDatabase(f"sqlite:///{shutil.copy(migrated, tmp_path)}")
    connection(database)
    yield database
    database.close()


@pytest.fixture(autouse=True)
def check_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check for expired requests more often than usual."""
    monkeypatch.setattr("gateway.intake.group_commit._CHECK_SECONDS", 0.01)


def run(database: Database, work: Callable[[DeliveryWriter], Awaitable[None]]) -> int:
    """Call something with a running writer; return how often it notified."""
    notified: list[None] = []

    async def scenario() -> None:
        async with asyncio.timeout(PATIENCE):
            writer = DeliveryWriter(database, notify=lambda: notified.append(None))
            writer.start()
            await work(writer)
            await writer.stop()

    asyncio.run(scenario())
    return len(notified)


async def begin(
    writer: DeliveryWriter, *arrivals: NewDelivery, seconds: float = NEVER
) -> list[asyncio.Task[Receipt]]:
    """Begin to record deliveries, in this order, until the writer has taken its first batch."""
    tasks = [asyncio.create_task(writer.accept(one, seconds=seconds)) for one in arrivals]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def numbered(*sizes: int, measure: str = "body") -> list[NewDelivery]:
    """Return deliveries d0, d1, … with bodies of so many bytes, or with so many ref updates."""
    if measure == "body":
        return [arrival(id=f"d{number}", body=b"x" * size) for number, size in enumerate(sizes)]
    names = itertools.count()
    moves = [[move(None, A, f"refs/tags/{next(names)}") for _ in range(size)] for size in sizes]
    return [arrival(*its_own, id=f"d{number}") for number, its_own in enumerate(moves)]


def kept(database: Database) -> set[str]:
    """Return the ids of the recorded deliveries."""
    with database.reading() as conn:
        return set(conn.execute(select(deliveries.c.id)).scalars())


@pytest.mark.parametrize(
    ("limit", "measure", "sizes", "batches"),
    [
        ("_MAX_DELIVERIES", "body", [1, 1, 1, 1, 1, 1, 1], [3, 3, 1]),
        *(
            (limit, measure, sizes, batches)
            for limit, measure in (("_MAX_BYTES", "body"), ("_MAX_UPDATES", "updates"))
            for sizes, batches in (
                ([1, 2, 1, 1, 1, 1], [2, 3, 1]),
                ([1, 1, 5, 1], [3, 1]),
                ([9, 3, 1], [1, 1, 1]),
            )
        ),
    ],
)
def test_one_transaction_takes_only_so_much(
    database: WatchedDatabase,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    measure: str,
    sizes: Sequence[int],
    batches: Sequence[int],
) -> None:
    """It takes a limited number of deliveries, bytes or ref updates, at least one delivery, in order."""
    monkeypatch.setattr(f"gateway.intake.group_commit.{limit}", 3)

    async def accept_all(writer: DeliveryWriter) -> None:
        await asyncio.gather(*await begin(writer, *numbered(*sizes, measure=measure)))

    run(database, accept_all)
    assert [len(batch) for batch in database.batches] == batches
    assert [one for batch in database.batches for one in batch] == [f"d{n}" for n in range(len(sizes))]


def test_deliveries_that_wait_together_share_a_transaction(database: WatchedDatabase) -> None:
    """If they have usual sizes: one sync to disk for each would be too slow."""

    async def accept_all(writer: DeliveryWriter) -> None:
        await asyncio.gather(*await begin(writer, *numbered(*[10_000] * 100)))

    run(database, accept_all)
    assert [len(batch) for batch in database.batches] == [100]


def test_only_something_new_rings(database: Database) -> None:
    """Workers are not notified of duplicates or ignored deliveries."""

    async def accept_all(writer: DeliveryWriter) -> None:
        for verdict in ("ignored", "unreadable"):
            await writer.accept(arrival(verdict=verdict))

    assert run(database, accept_all) == 0

    async def accept_twice(writer: DeliveryWriter) -> None:
        for expected in ("accepted", "duplicate"):
            receipt = await writer.accept(arrival(move(A, B), provider_delivery_id="guid"))
            assert receipt.verdict == expected

    assert run(database, accept_twice) == 1


def test_what_waits_when_the_writer_is_stopped_is_written(database: Database) -> None:
    """Each request still gets its receipt, and later requests are refused."""

    async def scenario() -> None:
        async with asyncio.timeout(PATIENCE):
            writer = DeliveryWriter(database, notify=lambda: None)
            await writer.stop()
            writer = DeliveryWriter(database, notify=lambda: None)
            assert not writer.healthy
            with pytest.raises(StoreUnavailable, match="is not running"):
                await writer.accept(arrival())
            writer.start()
            assert writer.healthy
            with database.writing():
                tasks = await begin(writer, *numbered(1))
                tasks += await begin(writer, arrival(id="d1"), arrival(id="d2"))
                stopping = asyncio.create_task(writer.stop())
                await asyncio.sleep(0)
            await stopping
            assert kept(database) == {"d0", "d1", "d2"}
            assert [receipt.delivery for receipt in await asyncio.gather(*tasks)] == ["d0", "d1", "d2"]
            assert not writer.healthy
            with pytest.raises(StoreUnavailable, match="is not running"):
                await writer.accept(arrival())

    asyncio.run(scenario())


def test_only_those_whose_time_is_over_are_given_up(database: WatchedDatabase) -> None:
    """The health probe shows it; the others wait, and are recorded once the database answers again."""

    async def wait(writer: DeliveryWriter) -> None:
        with database.writing():
            patient = await begin(writer, arrival(id="d0"))
            patient += await begin(writer, arrival(id="d1"))
            writer._give_up(asyncio.get_running_loop())  # noqa: SLF001 - a look in time
            assert writer.healthy
            [hurried] = await begin(writer, arrival(id="d2"), seconds=0.05)
            patient += await begin(writer, arrival(id="d3"))
            with pytest.raises(StoreUnavailable, match="in time"):
                await hurried
            assert not writer.healthy
            assert not any(task.done() for task in patient)
        assert [receipt.delivery for receipt in await asyncio.gather(*patient)] == ["d0", "d1", "d3"]

    run(database, wait)
    assert database.batches == [["d0"], ["d1", "d3"]]


def test_one_that_waits_alone_is_given_up_as_well(database: Database) -> None:
    """Whether it is being written or not, and also for the first request after a pause."""

    async def wait(writer: DeliveryWriter) -> None:
        for number in range(2):
            with database.writing():
                [alone] = await begin(writer, arrival(id=f"d{number}"), seconds=0.05)
                with pytest.raises(StoreUnavailable, match="in time"):
                    await alone
            await pause(writer)

    run(database, wait)


def test_the_writer_goes_on_if_all_that_waited_were_given_up(database: WatchedDatabase) -> None:
    """A batch without deliveries is not the end."""

    async def wait(writer: DeliveryWriter) -> None:
        with database.writing():
            first = await begin(writer, arrival(id="d0"))
            hurried = await begin(writer, arrival(id="d1"), arrival(id="d2"), seconds=0.05)
            outcomes = await asyncio.gather(*hurried, return_exceptions=True)
            assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        await asyncio.gather(*first)
        assert (await writer.accept(arrival(id="d3"))).delivery == "d3"

    run(database, wait)
    assert database.batches == [["d0"], ["d3"]]


async def pause(writer: DeliveryWriter) -> None:
    """Wait until no timer is left."""
    for _ in range(1000):
        if not writer._is_checking:  # noqa: SLF001
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the writer goes on to look after nothing")


class CountingLoop(asyncio.SelectorEventLoop):
    """An event loop that counts the timers it is asked for."""

    timers = 0

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Count, and do it."""
        self.timers += 1
        return super().call_later(delay, callback, *args, context=context)


def test_one_timer_looks_after_all_deliveries(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come before it fires."""
    monkeypatch.setattr("gateway.intake.group_commit._CHECK_SECONDS", NEVER)

    async def accept_many() -> int:
        writer = DeliveryWriter(database, notify=lambda: None)
        writer.start()
        for _ in range(5):
            await writer.accept(arrival())
        await writer.stop()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, CountingLoop)
        return loop.timers

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        assert runner.run(accept_many()) == 1


def test_a_request_that_ends_while_its_delivery_is_written_ends_no_other(database: Database) -> None:
    """Its delivery is stored all the same, and the others in the batch get their receipts."""

    async def accept_three(writer: DeliveryWriter) -> None:
        with database.writing():
            gone, *others = await begin(writer, *numbered(1, 1, 1))
            gone.cancel()
        assert [receipt.delivery for receipt in await asyncio.gather(*others)] == ["d1", "d2"]
        assert gone.cancelled()

    run(database, accept_three)
    assert kept(database) == {"d0", "d1", "d2"}


def test_a_delivery_that_cannot_be_recorded_ends_none_beside_it(database: Database) -> None:
    """Only that delivery is refused, with its type of error; the writer continues and reports a failure."""

    async def accept_both(writer: DeliveryWriter) -> None:
        bad, good = await begin(writer, arrival(connection="no such one"), arrival(move(A, B), id="d1"))
        with pytest.raises(StoreUnavailable, match="cannot be recorded: IntegrityError"):
            await bad
        assert (await good).delivery == "d1"
        assert not writer.healthy
        assert (await writer.accept(arrival(id="d2"))).delivery == "d2"
        assert writer.healthy

    with structlog.testing.capture_logs():
        assert run(database, accept_both) == 2
    assert kept(database) == {"d1", "d2"}


def test_a_store_that_fails_is_asked_once_for_a_batch(
    database: WatchedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request gets the reason, the log has it once, and the probe shows it for some time."""
    monkeypatch.setattr("gateway.store.database._INLINE_SECONDS", 0.0)

    async def fail(writer: DeliveryWriter) -> None:
        with database.writing():
            for _ in range(2):
                for task in await begin(writer, arrival(), arrival()):
                    with pytest.raises(StoreUnavailable, match="another transaction"):
                        await task
        assert not writer.healthy
        monkeypatch.setattr("gateway.intake.group_commit._UNREADY_SECONDS", 0.0)
        assert writer.healthy

    with structlog.testing.capture_logs() as lines:
        assert run(database, fail) == 0
    assert database.attempts == 2
    logged = [line["event"] for line in lines if line["event"].startswith("deliveries are refused")]
    assert len(logged) == 1


def test_how_long_a_request_waits_is_measured(database: Database) -> None:
    """In seconds, once for each delivery."""

    def measured(what: str) -> float:
        return REGISTRY.get_sample_value(f"pushgate_stage_seconds_{what}", {"stage": "accept"}) or 0.0

    async def accept(writer: DeliveryWriter) -> None:
        await writer.accept(arrival())

    count, seconds = measured("count"), measured("sum")
    run(database, accept)
    assert measured("count") == count + 1
    assert 0 < measured("sum") - seconds < PATIENCE
