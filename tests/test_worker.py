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
from structlog.testing import capture_logs

from gateway.errors import FetchError, Gone, ObjectUnusable, RemoteUnavailable
from gateway.intake.accept import Accepter
from gateway.metrics import SETTLED
from gateway.steps import Announcer
from gateway.store import connections, deliveries, events, work
from gateway.store.claims import Claims
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.doorbell import Doorbell
from gateway.store.events import StoredEvent
from gateway.store.executions import NewRequest
from gateway.store.work import PendingUpdate, Settlement, WorkQueue
from gateway.worker import Steps, Worker
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
    ) -> dict[int, FetchError]:
        """Wait until somebody who looks at the delivery reads the progress."""
        assert connection.id == updates[0].connection
        while not self.seen.startswith("fetching: "):
            progress("receiving objects 45 %, 12.00 MiB")
            await asyncio.sleep(0.02)
            found = await self._database.read(_newest)
            self.seen = found.updates[0].reason or ""
        return {}

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
    ) -> dict[int, FetchError]:
        """Hang."""
        progress(f"{connection.id}: {len(updates)}")
        self.began.set()
        await asyncio.Event().wait()
        return {}

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
    ) -> dict[int, FetchError]:
        """Fail, unless it is the commit that is gone."""
        progress(f"{connection.id}: {len(updates)}")
        if not isinstance(self._error, Gone):
            raise self._error
        return {}

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
    ) -> dict[int, FetchError]:
        """Have everything."""
        progress(f"{connection.id}: {len(updates)}")
        return {}

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
    ) -> dict[int, FetchError]:
        """Take so long that it happens."""
        assert updates
        progress("")
        self.urls.append(connection.url)
        if len(self.urls) == 1:
            await self._database.write(lambda transaction: self._change(transaction, connection))
        return {}

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


class Scripted:
    """Steps in which each ref fails as it is told, as often as it is told; afterwards nothing runs for it."""

    def __init__(self, **failing: Sequence[FetchError]) -> None:
        """Take the failures by the short names of the refs."""
        self._failing = {name: list(errors) for name, errors in failing.items()}
        self.planned: list[str] = []

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Have everything but what is refused, which the fetch itself finds out."""
        progress(connection.id)
        first = {update.seq: next(iter(self._failing.get(update.name, ())), None) for update in updates}
        return {seq: error for seq, error in first.items() if isinstance(error, ObjectUnusable)}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Fail as often as this ref does."""
        assert connection.id == update.connection
        self.planned.append(update.name)
        errors = self._failing.get(update.name)
        if errors:
            raise errors.pop(0)
        return Settlement(update=update, state="planned", reason="nothing runs")


def pushed(database: Database, *names: str, received_at: datetime | None = None) -> None:
    """Make a connection, and record pushes to these branches, one delivery each."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as transaction:
        for number, name in enumerate(names):
            push = move(f"{number:040x}", f"{number + 1:040x}", ref=f"refs/heads/{name}")
            deliveries.record(transaction, [arrival(push, received_at=received_at or now)])


def states(database: Database) -> dict[str, tuple[str, str | None]]:
    """Return each branch's newest push, how it stands and why."""
    with database.reading() as transaction:
        found = deliveries.page(transaction, connection=None, verdict=None, before=None, limit=50)
    updates = sorted((one for delivery in found for one in delivery.updates), key=lambda one: one.seq)
    return {one.update.name: (one.state, one.reason) for one in updates}


async def worked(database: Database, steps: Steps, until: Callable[[], object], **more: Any) -> None:
    """Let a worker work until something is so."""
    bell = Doorbell()
    queue = WorkQueue(database, CLAIMS)
    worker = Worker(
        name="w", queue=queue, steps=steps, news=bell.listener(), rings=bell.ring, **{"poll": 0.05, **more}
    )
    running = asyncio.create_task(worker.run())
    try:
        await asyncio.to_thread(wait_for, until, "the worker is done")
    finally:
        running.cancel()
        await asyncio.wait({running})


def test_a_refusal_is_the_end_of_its_own_push_only(database: Database) -> None:
    """Whether it is found out by the fetch or while planning; the others go on at once."""
    refused = ObjectUnusable("git refuses it")
    steps = Scripted(bad=[refused])
    pushed(database, "bad", "main")
    asyncio.run(worked(database, steps, lambda: states(database)["main"][0] == "planned"))
    assert states(database) == {"bad": ("failed", "git refuses it"), "main": ("planned", "nothing runs")}
    assert steps.planned == ["main"]


def test_an_outage_that_is_one_pushs_own_puts_off_no_other(database: Database) -> None:
    """Such as that of a submodule's host. Its own ref keeps its order, other refs go on, also later ones."""
    away = RemoteUnavailable("submodule lib: no answer")
    steps = Scripted(topic=[away] * 1000)
    pushed(database, "topic", "topic", "main")
    asyncio.run(worked(database, steps, lambda: states(database)["main"][0] == "planned"))
    with database.reading() as transaction:
        waiting = work.pending(transaction, "c1", limit=10)
        ready = work.pending(transaction, "c1", limit=10, now=datetime.now(UTC))
        assert CLAIMS.next(transaction, now=datetime.now(UTC)) is None
        assert CLAIMS.next(transaction, now=datetime.now(UTC) + timedelta(minutes=15)) == "c1"
        # A clock that once ran ahead has put it off by more than is ever waited for.
        assert CLAIMS.next(transaction, now=datetime.now(UTC) - timedelta(minutes=20)) == "c1"
    assert [(one.name, one.tries) for one in waiting] == [("topic", 1), ("topic", 0)]
    assert ready == []
    reason = "submodule lib: no answer"
    assert states(database)["topic"] == ("pending", f"waits for the push before it: {reason}")
    # One that comes while the other is put off finds the connection free.
    with database.writing() as transaction:
        later = move("a" * 40, "b" * 40, ref="refs/heads/later")
        deliveries.record(transaction, [arrival(later, received_at=datetime.now(UTC))])
    asyncio.run(worked(database, steps, lambda: states(database)["later"][0] == "planned"))
    with database.writing() as transaction:
        work.make_due(transaction, "c1", now=datetime.now(UTC))
        assert len(work.pending(transaction, "c1", limit=10, now=datetime.now(UTC))) == 2


def test_what_was_put_off_is_tried_again(database: Database) -> None:
    """And then ends; what came after it on its ref follows in its order."""
    steps = Scripted(topic=[RemoteUnavailable("no answer")])
    pushed(database, "topic", "topic")
    asyncio.run(worked(database, steps, lambda: len(steps.planned) == 3))
    assert steps.planned == ["topic", "topic", "topic"]
    asyncio.run(worked(database, steps, lambda: states(database)["topic"][0] == "planned"))


def test_a_commit_that_is_not_yet_there_is_looked_for_again(database: Database) -> None:
    """A webhook can be faster than the provider's replication: gone is only what stays away."""
    steps = Scripted(late=[Gone("no such commit")], never=[Gone("it is gone")] * 1000)
    pushed(database, "late", "never")
    done = lambda: states(database)["late"][0] == "planned"  # noqa: E731
    asyncio.run(worked(database, steps, done, patience=timedelta(minutes=10)))
    assert states(database)["never"] == ("pending", "it is gone")
    assert steps.planned.count("late") == 2
    with database.writing() as transaction:
        work.make_due(transaction, "c1", now=datetime.now(UTC))
    ended = lambda: states(database)["never"] == ("gone", "it is gone")  # noqa: E731
    asyncio.run(worked(database, steps, ended, patience=timedelta(0)))


class Hanging(Scripted):
    """Steps that hang over one ref, until they may go on."""

    def __init__(self, database: Database) -> None:
        """Begin."""
        super().__init__()
        self._database = database

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Hang over `slow` until the push that comes after it has ended."""
        if update.name == "slow" and "slow" not in self.planned:
            with self._database.writing() as transaction:
                push = move("a" * 40, "b" * 40, ref="refs/heads/main")
                deliveries.record(transaction, [arrival(push, received_at=datetime.now(UTC))])
            main_ended = lambda: states(self._database)["main"][0] == "planned"  # noqa: E731
            await asyncio.to_thread(wait_for, main_ended, "the push to main has ended")
        return await super().plan(connection, update)


def test_a_push_that_takes_long_holds_up_its_own_ref_only(database: Database) -> None:
    """As where a submodule's host hangs: what comes meanwhile for other refs is carried to its end."""
    steps = Hanging(database)
    pushed(database, "slow", "slow", "topic")
    ended = lambda: all(state == "planned" for state, _ in states(database).values())  # noqa: E731
    asyncio.run(worked(database, steps, ended, slow=0.05))
    assert steps.planned == ["topic", "main", "slow", "slow"]


def test_many_pushes_behind_one_that_takes_long_hold_up_no_other_ref(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are more than are looked at together."""
    monkeypatch.setattr("gateway.worker._AT_ONCE", 2)
    steps = Hanging(database)
    pushed(database, "slow", "slow", "slow")
    ended = lambda: all(state == "planned" for state, _ in states(database).values())  # noqa: E731
    asyncio.run(worked(database, steps, ended, slow=0.05))
    assert steps.planned == ["main", "slow", "slow", "slow"]


class Failing(Scripted):
    """Steps for which the remote is away for a while."""

    def __init__(self, *errors: Exception) -> None:
        """Fail so often."""
        super().__init__()
        self._errors = list(errors)

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Fail while there are errors left."""
        if self._errors:
            raise self._errors.pop(0)
        return await super().fetch(connection, updates, progress)


def test_after_a_success_failures_are_counted_from_the_start(database: Database) -> None:
    """An outage of last week does not make the next one's first pause long."""
    steps = Failing(RemoteUnavailable("no answer"))

    def attempts() -> int:
        with database.reading() as transaction:
            return work.attempts(transaction, "c1")

    pushed(database, "main")
    asyncio.run(worked(database, steps, attempts))
    asyncio.run(worked(database, steps, lambda: states(database)["main"][0] == "planned" and attempts() == 0))


@pytest.mark.parametrize(
    "steps",
    [Failing(*[RemoteUnavailable("no answer")] * 1000), Scripted(main=[RemoteUnavailable("no answer")])],
)
def test_pushes_that_are_given_up_are_counted_and_logged(database: Database, steps: Steps) -> None:
    """Like all others that end."""
    counted = SETTLED.labels("failed")._value.get()  # noqa: SLF001 - there is no other way to read it
    pushed(database, "main", received_at=datetime.now(UTC) - timedelta(days=4))
    with capture_logs() as logs:
        asyncio.run(worked(database, steps, lambda: states(database)["main"][0] == "failed"))
    reason = "given up after 3 days: no answer"
    assert [(one["state"], one["reason"]) for one in logs if one["event"] == "push settled"] == [
        ("failed", reason)
    ]
    assert SETTLED.labels("failed")._value.get() == counted + 1  # noqa: SLF001 - the same


def test_nobody_waits_for_a_poll(database: Database) -> None:
    """The door rings the worker, and the worker whoever publishes: the polls are for what was missed."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    request = NewRequest(
        id="ex_1",
        connection="c1",
        delivery="",
        project="digits",
        trigger="train",
        target="train",
        subject="",
        body=b"{}",
        lane=None,
        is_latest_only=False,
    )

    class Asking(Scripted):
        async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
            settlement = await super().plan(connection, update)
            return replace(settlement, requests=(replace(request, delivery=update.delivery),))

    async def scenario() -> None:
        pushes, requests = Doorbell(), Doorbell()
        relay, hour = requests.listener(), 3600
        accepter = Accepter(database, rings=pushes.ring)
        worker = Worker(
            name="w",
            queue=WorkQueue(database, CLAIMS),
            steps=Asking(),
            news=pushes.listener(),
            rings=requests.ring,
            poll=hour,
        )
        accepter.start()
        running = asyncio.create_task(worker.run())
        try:
            async with asyncio.timeout(60):
                for before, after in (("a" * 40, "b" * 40), ("b" * 40, "a" * 40)):
                    await accepter.accept(arrival(move(before, after), received_at=now))
                    await relay.wait(hour)
        finally:
            running.cancel()
            await asyncio.wait({running})
            await accepter.stop()

    asyncio.run(scenario())
    assert states(database)["main"] == ("planned", "nothing runs")
