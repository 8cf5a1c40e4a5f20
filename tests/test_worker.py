"""The worker, on a real store: what it tells while it works."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection as Transaction

from gateway.errors import FetchError, Gone, RemoteUnavailable
from gateway.steps import Announcer
from gateway.store import connections, deliveries, events
from gateway.store.claims import Claims
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.doorbell import Doorbell
from gateway.store.events import StoredEvent
from gateway.store.work import PendingUpdate, Settlement, WorkQueue
from gateway.worker import Worker
from tests.service import wait_for
from tests.store.make import arrival, connection, move

CLAIMS = Claims(process="p")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Give an empty store."""
    database = Database(f"sqlite:///{tmp_path / 'worker.db'}")
    database.migrate()
    yield database
    database.close()


class SlowRemote:
    """Steps whose fetch tells how far it has come, and ends once that is seen."""

    def __init__(self, database: Database) -> None:
        """Look into this store."""
        self._database = database
        self.seen = ""

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> None:
        """Wait until somebody who looks at the delivery reads the progress."""
        assert connection.id == updates[0].connection
        while not self.seen.startswith("fetching: "):
            progress("receiving objects 45 %, 12.00 MiB")
            await asyncio.sleep(0.02)
            found = await self._database.read(_newest)
            self.seen = found.updates[0].reason or ""

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Have nothing run."""
        return Settlement(update=update, state="planned", reason=f"fetched for {connection.name}")


def _newest(transaction: Any) -> deliveries.RecordedDelivery:
    return deliveries.page(transaction, connection=None, verdict=None, before=None, limit=1)[0]


def test_a_long_fetch_is_told_on_the_delivery(database: Database) -> None:
    """Percent and bytes, for whoever looks; afterwards the reason is how it ended."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as transaction:
        deliveries.record(transaction, [arrival(move("a" * 40, "b" * 40), received_at=now)])

    def settled() -> deliveries.RecordedDelivery | None:
        with database.reading() as transaction:
            found = _newest(transaction)
        return found if found.updates[0].state != "pending" else None

    async def scenario() -> tuple[str, str | None]:
        steps = SlowRemote(database)
        bell = Doorbell()
        worker = Worker(
            name="w", queue=WorkQueue(database, CLAIMS), steps=steps, news=bell.listener(), rings=bell.ring
        )
        running = asyncio.create_task(worker.run())
        found = await asyncio.to_thread(wait_for, settled, "the update has ended")
        running.cancel()
        await asyncio.wait({running})
        return steps.seen, found.updates[0].reason

    assert asyncio.run(scenario()) == (
        "fetching: receiving objects 45 %, 12.00 MiB",
        "fetched for acme/digits",
    )


class NeverEnds:
    """Steps whose fetch begins, and hangs."""

    def __init__(self) -> None:
        """Begin."""
        self.began = asyncio.Event()

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> None:
        """Hang."""
        progress(f"{connection.id}: {len(updates)}")
        self.began.set()
        await asyncio.Event().wait()

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Is never reached."""
        raise AssertionError((connection, update))


def test_a_worker_that_is_ended_hands_its_work_back(database: Database) -> None:
    """Nobody waits for its lease to expire."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as transaction:
        deliveries.record(transaction, [arrival(move("a" * 40, "b" * 40), received_at=now)])

    async def scenario() -> str | None:
        steps, bell, queue = NeverEnds(), Doorbell(), WorkQueue(database, CLAIMS)
        worker = Worker(name="w", queue=queue, steps=steps, news=bell.listener(), rings=bell.ring)
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(30):
            await steps.began.wait()
            assert await queue.claim(owner="other", now=datetime.now(UTC), until=now) is None
            running.cancel()
            await asyncio.wait({running})
            soon = datetime.now(UTC)
            return await queue.claim(owner="other", now=soon, until=soon + timedelta(seconds=60))

    assert asyncio.run(scenario()) == "c1"


class Refusing:
    """Steps of which one fails: a remote that is away, or one that has no such commit any more."""

    def __init__(self, error: FetchError) -> None:
        """Fail so."""
        self._error = error

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> None:
        """Fail, unless it is the commit that is gone."""
        progress(f"{connection.id}: {len(updates)}")
        if not isinstance(self._error, Gone):
            raise self._error

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Fail."""
        assert connection.id == update.connection
        raise self._error


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (Gone("the remote no longer has it"), "gone", "the remote no longer has it"),
        (RemoteUnavailable("no answer"), "failed", "given up after 3 days: no answer"),
    ],
)
def test_what_is_gone_or_given_up_is_told(
    database: Database, error: FetchError, state: str, reason: str
) -> None:
    """With the same reason that the delivery has."""
    long_ago = datetime.now(UTC) - timedelta(days=4)
    connection(database, created_at=long_ago, updated_at=long_ago)
    with database.writing() as transaction:
        deliveries.record(transaction, [arrival(move("a" * 40, "b" * 40), received_at=long_ago)])

    def told() -> list[StoredEvent]:
        with database.reading() as transaction:
            return events.pending(transaction, limit=10, without=())

    async def scenario() -> None:
        bell = Doorbell()
        worker = Worker(
            name="w",
            queue=WorkQueue(database, Claims(process="p")),
            steps=Refusing(error),
            news=bell.listener(),
            rings=bell.ring,
            announce=Announcer(names=("delivery.failed",)),
        )
        running = asyncio.create_task(worker.run())
        await asyncio.to_thread(wait_for, told, "an event is written")
        running.cancel()
        await asyncio.wait({running})

    asyncio.run(scenario())
    [event] = told()
    body = json.loads(event.body)
    assert (event.name, body["state"], body["reason"]) == ("delivery.failed", state, reason)
    assert (body["commit"], body["before"], body["pushed_by"]) == ("b" * 40, "a" * 40, "ada")
    with database.reading() as transaction:
        [update] = _newest(transaction).updates
    assert (update.state, update.reason) == (state, reason)


class InOrder:
    """Steps that tell of which connections updates were planned, in that order."""

    def __init__(self, most: int) -> None:
        """Be done after so many."""
        self.planned: list[str] = []
        self.done = asyncio.Event()
        self._most = most

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> None:
        """Have everything."""
        progress(f"{connection.id}: {len(updates)}")

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Have nothing run."""
        self.planned.append(connection.id)
        if len(self.planned) == self._most:
            self.done.set()
        return Settlement(update=update, state="planned", reason="")


def test_a_storm_in_one_repository_lets_the_others_have_their_turns(database: Database) -> None:
    """The one worker that there is does not stay until all of it is done."""
    now = datetime.now(UTC)
    storm = [move("a" * 40, "b" * 40, ref=f"refs/heads/{number}") for number in range(50)]
    push = move("a" * 40, "b" * 40)
    for one in ("c1", "c2", "c3"):
        connection(database, one, created_at=now, updated_at=now)
    with database.writing() as transaction:
        deliveries.record(transaction, [arrival(*storm, received_at=now)])
        others = [arrival(push, connection=one, received_at=now) for one in ("c2", "c3")]
        deliveries.record(transaction, others)

    async def scenario() -> list[str]:
        steps, bell = InOrder(len(storm) + 2), Doorbell()
        worker = Worker(
            name="w",
            queue=WorkQueue(database, CLAIMS),
            steps=steps,
            news=bell.listener(),
            rings=bell.ring,
            turn=0,
        )
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(60):
            await steps.done.wait()
        running.cancel()
        await asyncio.wait({running})
        return steps.planned

    planned = asyncio.run(scenario())
    assert sorted(planned[:3]) == ["c1", "c2", "c3"]
    assert planned.count("c1") == len(storm)


class Overtaken:
    """Steps during whose first fetch somebody changes the connection, or deletes it."""

    def __init__(self, database: Database, change: Callable[[Transaction, Connection], None]) -> None:
        """Let `change` happen in this store."""
        self._database = database
        self._change = change
        self.urls: list[str] = []

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> None:
        """Take so long that it happens."""
        assert updates
        progress("")
        self.urls.append(connection.url)
        if len(self.urls) == 1:
            await self._database.write(lambda transaction: self._change(transaction, connection))

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Say for whom."""
        return Settlement(update=update, state="planned", reason=f"for {connection.name}")


OURS, OTHER = "https://github.example/acme/digits.git", "https://github.example/acme/letters.git"


@pytest.mark.parametrize(
    ("change", "ended", "urls"),
    [
        (lambda t, c: connections.change(t, replace(c, name="new")), "for new", [OURS]),
        (lambda t, c: connections.change(t, replace(c, url=OTHER)), "for acme/digits", [OURS, OTHER]),
        (lambda t, c: connections.remove(t, c.id, now=c.created_at), "the connection was deleted", [OURS]),
    ],
    ids=["renamed", "moved", "deleted"],
)
def test_what_is_changed_during_a_fetch_counts(
    database: Database, change: Callable[[Transaction, Connection], None], ended: str, urls: list[str]
) -> None:
    """Whoever was told that it is changed, or deleted, finds that nothing of before is planned any more."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as transaction:
        deliveries.record(transaction, [arrival(move("a" * 40, "b" * 40), received_at=now)])

    def settled() -> str | None:
        with database.reading() as transaction:
            [update] = _newest(transaction).updates
        return update.reason if update.state != "pending" else None

    async def scenario() -> tuple[str, list[str]]:
        steps, bell = Overtaken(database, change), Doorbell()
        queue = WorkQueue(database, CLAIMS)
        worker = Worker(name="w", queue=queue, steps=steps, news=bell.listener(), rings=bell.ring)
        running = asyncio.create_task(worker.run())
        reason = await asyncio.to_thread(wait_for, settled, "the update has ended")
        running.cancel()
        await asyncio.wait({running})
        return reason, steps.urls

    assert asyncio.run(scenario()) == (ended, urls)
