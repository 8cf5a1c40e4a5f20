"""Ref updates that take long to plan: they delay their own ref only."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest

from gateway.errors import (
    FetchError,
    RemoteUnavailable,
)
from gateway.store import accept, connections, work_queue
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.tables import ref_updates
from gateway.store.work_queue import PendingUpdate, Settlement
from testing.records import arrival, move
from testing.service import wait_for
from tests.worker.stages import FaultyDatabase, Scripted, is_released, pushed, states, worked


class Hanging(Scripted):
    """Stages that hang at one ref until they are released."""

    def __init__(self, database: Database) -> None:
        """Begin."""
        super().__init__()
        self._database = database

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Hang at `slow` until the push after it has ended."""
        if update.name == "slow" and "slow" not in self.planned:
            with self._database.writing() as conn:
                push = move("a" * 40, "b" * 40, ref="refs/heads/main")
                accept.record(conn, [arrival(push, received_at=datetime.now(UTC))])
            main_ended = lambda: states(self._database)["main"][0] == "planned"  # noqa: E731
            await asyncio.to_thread(wait_for, main_ended, "the push to main has ended")
        return await super().plan(connection, update)


def test_a_push_that_takes_long_holds_up_its_own_ref_only(database: Database) -> None:
    """As when a submodule's host hangs: updates of other refs are carried to their ends meanwhile."""
    stages = Hanging(database)
    pushed(database, "slow", "slow", "topic")
    ended = lambda: all(state == "planned" for state, _ in states(database).values())  # noqa: E731
    asyncio.run(worked(database, stages, ended, slow=0.05))
    assert stages.planned == ["topic", "main", "slow", "slow"]


def test_many_pushes_behind_one_that_takes_long_hold_up_no_other_ref(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if there are more than one batch holds."""
    monkeypatch.setattr("gateway.worker.worker._BATCH_SIZE", 2)
    stages = Hanging(database)
    pushed(database, "slow", "slow", "slow")
    ended = lambda: all(state == "planned" for state, _ in states(database).values())  # noqa: E731
    asyncio.run(worked(database, stages, ended, slow=0.05))
    assert stages.planned == ["main", "slow", "slow", "slow"]


class Gated(Scripted):
    """Stages in which each push waits for its gate; they record which have begun."""

    def __init__(self, *errors: FetchError) -> None:
        """Let so many fetches after the first fail."""
        super().__init__()
        self.fetches: list[int] = []
        self.began: list[str] = []
        self._gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._errors = list(errors)

    def open(self, *names: str) -> None:
        """Release these pushes."""
        for name in names:
            self._gates[name].set()

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Fail from the second one on, while there are errors left."""
        self.fetches.append(len(updates))
        if len(self.fetches) > 1 and self._errors:
            raise self._errors.pop(0)
        return await super().fetch(connection, updates, progress)

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Wait until the push is released."""
        self.began.append(update.name)
        await self._gates[update.name].wait()
        return await super().plan(connection, update)


def test_three_pushes_that_take_long_are_the_most_of_a_connection(database: Database) -> None:
    """A fourth waits until one of them has ended: each uses memory and a place at its host."""
    stages = Gated()
    pushed(database, "one", "two", "three", "four")

    async def scenario() -> None:
        working = asyncio.create_task(
            worked(database, stages, lambda: len(stages.planned) == 4, slow=0.01, poll_seconds=0.01)
        )
        await asyncio.to_thread(wait_for, lambda: len(stages.began) == 3, "three have begun")
        # It is still so after many more reads of the queue.
        for _ in range(10):
            await asyncio.to_thread(states, database)
        assert stages.began == ["one", "two", "three"]
        stages.open("two")
        await asyncio.to_thread(wait_for, lambda: len(stages.began) == 4, "the fourth has begun")
        assert stages.planned == ["two"]
        stages.open("one", "three", "four")
        await working

    asyncio.run(scenario())
    assert 0 not in stages.fetches, "nothing is fetched where nothing is wanted"


def test_what_waits_behind_a_push_that_takes_long_says_so_at_once(database: FaultyDatabase) -> None:
    """One transaction records all that wait, however many there are."""
    stages = Gated()
    stages.open("topic")
    pushed(database, "slow", *["slow"] * 20, "topic")

    async def scenario() -> None:
        ended = lambda: states(database)["topic"][0] == "planned"  # noqa: E731
        await worked(database, stages, ended, slow=0.01)

    asyncio.run(scenario())
    [call] = database.calls_of(work_queue.record_progress)
    behind, reason = call.args
    assert (len(behind), reason) == (20, "waiting for the previous push: planning is slow")
    assert states(database)["slow"] == ("pending", reason)


def test_an_outage_waits_for_the_push_that_takes_long(database: Database) -> None:
    """Updates that were begun are carried to their ends; unfetched ones are retried later, with a reason."""
    stages = Gated(*[RemoteUnavailable("no answer")] * 1000)
    pushed(database, "slow")

    async def scenario() -> None:
        done = lambda: states(database).get("main") == ("pending", "no answer")  # noqa: E731
        working = asyncio.create_task(worked(database, stages, done, slow=0.01, poll_seconds=0.01))
        await asyncio.to_thread(wait_for, lambda: stages.began, "the slow one has begun")
        with database.writing() as conn:
            push = move("a" * 40, "b" * 40, ref="refs/heads/main")
            accept.record(conn, [arrival(push, received_at=datetime.now(UTC))])
        await asyncio.to_thread(wait_for, lambda: len(stages.fetches) == 2, "the remote is away")
        for _ in range(10):
            await asyncio.to_thread(states, database)
        assert len(stages.fetches) == 2
        stages.open("slow", "main")
        await working

    asyncio.run(scenario())
    assert states(database)["slow"][0] == "planned"


def test_a_worker_that_is_ended_ends_what_takes_long(database: Database) -> None:
    """None of its tasks goes on next to the next worker."""
    stopped: list[str] = []

    class Stopped(Gated):
        async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
            try:
                return await super().plan(connection, update)
            finally:
                stopped.append(update.name)

    stages = Stopped()
    pushed(database, "slow")
    asyncio.run(worked(database, stages, lambda: stages.began, slow=0.01))
    assert stopped == ["slow"]


def test_a_connection_that_is_deleted_ends_what_takes_long(database: Database) -> None:
    """And all its waiting pushes, each with the reason."""
    stages = Gated()
    pushed(database, "slow", "slow")

    async def scenario() -> None:
        end = ("failed", "the connection was deleted")
        ended = lambda: states(database)["slow"] == end and is_released(database)  # noqa: E731
        working = asyncio.create_task(worked(database, stages, ended, slow=0.01, poll_seconds=0.01))
        await asyncio.to_thread(wait_for, lambda: stages.began, "it has begun")
        with database.writing() as conn:
            connections.remove(conn, "c1", now=datetime.now(UTC))
            # As after a delivery that was accepted at the same time.
            conn.execute(ref_updates.update().values(state="pending", reason=None))
        await working

    asyncio.run(scenario())
    assert stages.planned == []
