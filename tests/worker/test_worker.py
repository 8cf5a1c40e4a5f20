"""The worker on a real store, with stages of the tests."""

import asyncio
import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pytest
import sqlalchemy
from structlog.testing import capture_logs

from gateway.errors import (
    FetchError,
    Gone,
    ObjectUnusable,
    RemoteRefuses,
    RemoteSilent,
    RemoteUnavailable,
    StoreUnavailable,
)
from gateway.intake.group_commit import DeliveryWriter
from gateway.metrics import SETTLED, STAGE
from gateway.store import accept, connections, deliveries, events, work_queue
from gateway.store.claims import Claims, SilentHosts
from gateway.store.connections import Connection
from gateway.store.database import Database
from gateway.store.events import NewEvent, StoredEvent
from gateway.store.executions import NewRequest
from gateway.store.notify import Notifier
from gateway.store.tables import leases, ref_updates
from gateway.store.work_queue import LeaseLost, PendingUpdate, Settlement
from gateway.worker.announcer import Announcer
from gateway.worker.worker import _RENEW_SECONDS, LEASE, Stages, Worker
from testing.records import arrival, connection, move
from testing.service import WAIT_SECONDS, wait_for

P = ParamSpec("P")
T = TypeVar("T")

CLAIMS = Claims(process="p")


Work = Callable[..., object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call of a function of the store, with its arguments and its time."""

    work: Work
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    called_at: datetime


class FaultyDatabase(Database):
    """A database on which the functions in `failing` fail once each; it records the calls."""

    def __init__(self, url: str) -> None:
        """Begin without failures."""
        super().__init__(url)
        self.failing: dict[Work, Exception] = {}
        self.calls: list[Call] = []

    async def write(
        self, work: Callable[Concatenate[sqlalchemy.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Record the call; fail, or write."""
        self._observe(work, args, kwargs)
        return await super().write(work, *args, **kwargs)

    async def read(
        self, work: Callable[Concatenate[sqlalchemy.Connection, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Record the call; fail, or read."""
        self._observe(work, args, kwargs)
        return await super().read(work, *args, **kwargs)

    def _observe(self, work: Work, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.calls.append(Call(work=work, args=args, kwargs=kwargs, called_at=datetime.now(UTC)))
        if work in self.failing:
            raise self.failing.pop(work)

    def calls_of(self, *works: Work) -> list[Call]:
        """Return the calls of these functions so far."""
        return [call for call in self.calls if call.work in works]


@pytest.fixture
def database(tmp_path: Path, migrated: Path) -> Iterator[FaultyDatabase]:
    """Return an empty store."""
    shutil.copyfile(migrated, tmp_path / "worker.db")
    database = FaultyDatabase(f"sqlite:///{tmp_path / 'worker.db'}")
    yield database
    database.close()


class SlowRemote:
    """Stages whose fetch reports its progress, and ends once the delivery shows it."""

    def __init__(self, database: Database) -> None:
        """Read from this store."""
        self._database = database
        self.seen = ""

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Wait until the delivery shows the progress."""
        assert connection.id == updates[0].connection
        while not self.seen.startswith("fetching: "):
            progress("receiving objects 3 %, 1.00 MiB")
            progress("receiving objects 45 %, 12.00 MiB")
            await asyncio.sleep(0.02)
            found = await self._database.read(_newest)
            self.seen = found.updates[0].reason or ""
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Run nothing."""
        return Settlement(update=update, state="planned", reason=f"fetched for {connection.name}")


def _newest(conn: Any) -> deliveries.RecordedDelivery:
    return deliveries.page(conn, connection=None, verdict=None, before=None, limit=1)[0]


def test_a_long_fetch_is_told_on_the_delivery(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delivery shows percent and bytes; afterwards it shows how the update ended."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as conn:
        accept.record(conn, [arrival(move("a" * 40, "b" * 40), received_at=now)])

    def settled() -> deliveries.RecordedDelivery | None:
        with database.reading() as conn:
            found = _newest(conn)
        return found if found.updates[0].state != "pending" else None

    async def scenario() -> tuple[str, str | None]:
        stages = SlowRemote(database)
        notifier = Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=stages,
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
        )
        running = asyncio.create_task(worker.run())
        found = await asyncio.to_thread(wait_for, settled, "the update has ended")
        running.cancel()
        await asyncio.wait({running})
        return stages.seen, found.updates[0].reason

    monkeypatch.setattr("gateway.worker.worker._PROGRESS_SECONDS", 0.02)
    assert asyncio.run(scenario()) == (
        "fetching: receiving objects 45 %, 12.00 MiB",
        "fetched for acme/digits",
    )


class NeverEnds:
    """Stages whose fetch begins, and hangs."""

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
    """No worker waits for its lease to expire; earlier failed tries still count."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as conn:
        accept.record(conn, [arrival(move("a" * 40, "b" * 40), received_at=now)])
        assert CLAIMS.claim(conn, owner="w", now=now, until=now + timedelta(seconds=60)) == "c1"
        work_queue.postpone(conn, "c1", (), owner="w", due_at=now, reason="no answer")

    async def scenario() -> str | None:
        stages, notifier = NeverEnds(), Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=stages,
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
        )
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(WAIT_SECONDS):
            await stages.began.wait()
            assert await claim_of_another(database) is None
            running.cancel()
            await asyncio.wait({running})
            return await claim_of_another(database)

    assert asyncio.run(scenario()) == "c1"
    with database.reading() as conn:
        assert work_queue.attempts(conn, "c1") == 1


async def claim_of_another(database: Database) -> str | None:
    """Return the connection that another worker can claim, if any."""
    now = datetime.now(UTC)
    return await database.write(CLAIMS.claim, owner="other", now=now, until=now + LEASE)


class Refusing:
    """Stages that fail: the remote is down, or no longer has the commit."""

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
    """The event has the reason that the delivery shows."""
    long_ago = datetime.now(UTC) - timedelta(days=4)
    connection(database, created_at=long_ago, updated_at=long_ago)
    with database.writing() as conn:
        accept.record(conn, [arrival(move("a" * 40, "b" * 40), received_at=long_ago)])

    def told() -> list[StoredEvent]:
        with database.reading() as conn:
            return events.pending(conn, limit=10, without=())

    async def scenario() -> None:
        notifier = Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=Refusing(error),
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
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
    with database.reading() as conn:
        [update] = _newest(conn).updates
    assert (update.state, update.reason) == (state, reason)


class InOrder:
    """Stages that record the connections of planned updates, in order."""

    def __init__(self, most: int) -> None:
        """Set the event after so many."""
        self.planned: list[str] = []
        self.done = asyncio.Event()
        self._most = most

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Fetch everything."""
        progress(f"{connection.id}: {len(updates)}")
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Run nothing."""
        self.planned.append(connection.id)
        if len(self.planned) == self._most:
            self.done.set()
        return Settlement(update=update, state="planned", reason="")


def test_a_storm_in_one_repository_lets_the_others_have_their_turns(database: Database) -> None:
    """The only worker does not stay until all updates of a connection are done."""
    now = datetime.now(UTC)
    storm = [move("a" * 40, "b" * 40, ref=f"refs/heads/{number}") for number in range(10)]
    push = move("a" * 40, "b" * 40)
    for one in ("c1", "c2", "c3"):
        connection(database, one, created_at=now, updated_at=now)
    with database.writing() as conn:
        accept.record(conn, [arrival(*storm, received_at=now)])
        others = [arrival(push, connection=one, received_at=now) for one in ("c2", "c3")]
        accept.record(conn, others)

    async def scenario() -> list[str]:
        stages, notifier = InOrder(len(storm) + 2), Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=stages,
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
            turn=0,
        )
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(WAIT_SECONDS):
            await stages.done.wait()
        running.cancel()
        await asyncio.wait({running})
        return stages.planned

    planned = asyncio.run(scenario())
    assert sorted(planned[:3]) == ["c1", "c2", "c3"]
    assert planned.count("c1") == len(storm)


class Overtaken:
    """Stages during whose first fetch the connection is changed or deleted."""

    def __init__(
        self, database: Database, change: Callable[[sqlalchemy.Connection, Connection], None]
    ) -> None:
        """Apply `change` to this store."""
        self._database = database
        self._change = change
        self.urls: list[str] = []

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Wait until the change is made."""
        assert updates
        progress("")
        self.urls.append(connection.url)
        if len(self.urls) == 1:
            await self._database.write(lambda conn: self._change(conn, connection))
        return {}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Run nothing; the reason names the connection."""
        return Settlement(update=update, state="planned", reason=f"for {connection.name}")


OURS, OTHER = "https://github.example/acme/digits.git", "https://github.example/acme/letters.git"
ANOTHER = "https://github.example/acme/apples.git"


@pytest.mark.parametrize(
    ("change", "ended", "urls"),
    [
        (lambda t, c: connections.change(t, replace(c, name="new")), "for new", [OURS]),
        (lambda t, c: connections.change(t, replace(c, url=OTHER)), "for acme/digits", [OURS, OTHER]),
        (lambda t, c: connections.change(t, replace(c, url=ANOTHER)), "for acme/digits", [OURS, ANOTHER]),
        (lambda t, c: connections.remove(t, c.id, now=c.created_at), "the connection was deleted", [OURS]),
    ],
    ids=["renamed", "moved", "moved elsewhere", "deleted"],
)
def test_what_is_changed_during_a_fetch_counts(
    database: Database,
    change: Callable[[sqlalchemy.Connection, Connection], None],
    ended: str,
    urls: list[str],
) -> None:
    """After a change or a deletion was confirmed, nothing is planned by the earlier state."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)
    with database.writing() as conn:
        accept.record(conn, [arrival(move("a" * 40, "b" * 40), received_at=now)])

    def settled() -> str | None:
        with database.reading() as conn:
            [update] = _newest(conn).updates
        return update.reason if update.state != "pending" else None

    async def scenario() -> tuple[str, list[str]]:
        stages, notifier = Overtaken(database, change), Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=stages,
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
        )
        running = asyncio.create_task(worker.run())
        reason = await asyncio.to_thread(wait_for, settled, "the update has ended")
        running.cancel()
        await asyncio.wait({running})
        return reason, stages.urls

    assert asyncio.run(scenario()) == (ended, urls)


class Scripted:
    """Stages in which each ref raises its given errors, one at each try; afterwards nothing runs for it."""

    def __init__(self, **failing: Sequence[Exception]) -> None:
        """Set the failures by the short names of the refs."""
        self._failing = {name: list(errors) for name, errors in failing.items()}
        self.planned: list[str] = []

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Fetch everything except refused objects, for which the fetch fails."""
        progress(connection.id)
        first = {update.seq: next(iter(self._failing.get(update.name, ())), None) for update in updates}
        return {seq: error for seq, error in first.items() if isinstance(error, ObjectUnusable)}

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Raise this ref's errors, then run nothing."""
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
    with database.writing() as conn:
        for number, name in enumerate(names):
            push = move(f"{number:040x}", f"{number + 1:040x}", ref=f"refs/heads/{name}")
            accept.record(conn, [arrival(push, received_at=received_at or now)])


def states(database: Database) -> dict[str, tuple[str, str | None]]:
    """Return the state and reason of each branch's newest push."""
    with database.reading() as conn:
        found = deliveries.page(conn, connection=None, verdict=None, before=None, limit=50)
    updates = sorted((one for delivery in found for one in delivery.updates), key=lambda one: one.seq)
    return {one.update.name: (one.state, one.reason) for one in updates}


async def worked(database: Database, stages: Stages, until: Callable[[], object], **more: Any) -> None:
    """Run a worker until a condition holds."""
    notifier = Notifier()
    given = {"claims": CLAIMS, "notify": notifier.notify, "poll_seconds": 0.05, **more}
    worker = Worker(name="w", database=database, stages=stages, wakeups=notifier.subscribe(), **given)
    running = asyncio.create_task(worker.run())
    try:
        await asyncio.to_thread(wait_for, until, "the worker is done")
    finally:
        running.cancel()
        await asyncio.wait({running})


def test_a_refusal_is_the_end_of_its_own_push_only(database: Database) -> None:
    """Whether the fetch or the planning fails; the other updates continue at once."""
    refused = ObjectUnusable("git refuses it")
    stages = Scripted(bad=[refused])
    pushed(database, "bad", "main")
    asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "planned"))
    assert states(database) == {"bad": ("failed", "git refuses it"), "main": ("planned", "nothing runs")}
    assert stages.planned == ["main"]


def test_an_outage_that_is_one_pushs_own_puts_off_no_other(database: Database) -> None:
    """Such as a submodule's host. The ref keeps its order; other refs continue, and so do later ones."""
    away = RemoteUnavailable("submodule lib: no answer")
    stages = Scripted(topic=[away] * 1000)
    pushed(database, "topic", "topic", "main")
    asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "planned"))
    with database.reading() as conn:
        waiting = work_queue.pending(conn, "c1", limit=10)
        ready = work_queue.pending(conn, "c1", limit=10, now=datetime.now(UTC))
        assert CLAIMS.next(conn, now=datetime.now(UTC)) is None
        assert CLAIMS.next(conn, now=datetime.now(UTC) + timedelta(minutes=15)) == "c1"
        # A clock that once ran ahead has delayed it beyond the longest pause.
        assert CLAIMS.next(conn, now=datetime.now(UTC) - timedelta(minutes=20)) == "c1"
    assert [(one.name, one.tries) for one in waiting] == [("topic", 1), ("topic", 0)]
    assert ready == []
    reason = "submodule lib: no answer"
    assert states(database)["topic"] == ("pending", f"waiting for the previous push: {reason}")
    # A push that arrives during the delay finds the connection free.
    with database.writing() as conn:
        later = move("a" * 40, "b" * 40, ref="refs/heads/later")
        accept.record(conn, [arrival(later, received_at=datetime.now(UTC))])
    asyncio.run(worked(database, stages, lambda: states(database)["later"][0] == "planned"))
    with database.writing() as conn:
        work_queue.make_due(conn, "c1", now=datetime.now(UTC))
        assert len(work_queue.pending(conn, "c1", limit=10, now=datetime.now(UTC))) == 2


def test_what_was_put_off_is_tried_again(database: Database) -> None:
    """Then it ends, and later pushes to its ref follow in order."""
    stages = Scripted(topic=[RemoteUnavailable("no answer")])
    pushed(database, "topic", "topic")
    asyncio.run(worked(database, stages, lambda: len(stages.planned) == 3))
    assert stages.planned == ["topic", "topic", "topic"]
    asyncio.run(worked(database, stages, lambda: states(database)["topic"][0] == "planned"))


def test_a_commit_that_is_not_yet_there_is_looked_for_again(database: Database) -> None:
    """A webhook can be faster than the provider's replication: only a commit that stays missing is gone."""
    stages = Scripted(late=[Gone("no such commit")], never=[Gone("it is gone")] * 1000)
    pushed(database, "late", "never")
    done = lambda: states(database)["late"][0] == "planned"  # noqa: E731
    asyncio.run(worked(database, stages, done, patience=timedelta(minutes=10)))
    assert states(database)["never"] == ("pending", "it is gone")
    assert stages.planned.count("late") == 2
    with database.writing() as conn:
        work_queue.make_due(conn, "c1", now=datetime.now(UTC))
    ended = lambda: states(database)["never"] == ("gone", "it is gone")  # noqa: E731
    asyncio.run(worked(database, stages, ended, patience=timedelta(0)))


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


class Failing(Scripted):
    """Stages whose remote is down for a while."""

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
    stages = Failing(RemoteUnavailable("no answer"))

    def attempts() -> int:
        with database.reading() as conn:
            return work_queue.attempts(conn, "c1")

    pushed(database, "main")
    asyncio.run(worked(database, stages, attempts))
    asyncio.run(
        worked(database, stages, lambda: states(database)["main"][0] == "planned" and attempts() == 0)
    )


@pytest.mark.parametrize(
    "stages",
    [Failing(*[RemoteUnavailable("no answer")] * 1000), Scripted(main=[RemoteUnavailable("no answer")])],
)
def test_pushes_that_are_given_up_are_counted_and_logged(database: Database, stages: Stages) -> None:
    """Like all other pushes that end."""
    counted = SETTLED.labels("failed")._value.get()  # noqa: SLF001 - there is no other way to read it
    pushed(database, "main", received_at=datetime.now(UTC) - timedelta(days=4))
    with capture_logs() as logs:
        asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "failed"))
    reason = "given up after 3 days: no answer"
    assert [(one["state"], one["reason"]) for one in logs if one["event"] == "push settled"] == [
        ("failed", reason)
    ]
    assert SETTLED.labels("failed")._value.get() == counted + 1  # noqa: SLF001 - the same


def test_nobody_waits_for_a_poll(database: Database) -> None:
    """Intake notifies the worker, and the worker notifies the relay: polls only cover lost notifications."""
    now = datetime.now(UTC)
    connection(database, created_at=now, updated_at=now)

    class Asking(Scripted):
        async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
            settlement = await super().plan(connection, update)
            return replace(settlement, requests=(request_of(update, b"{}"),))

    async def scenario() -> None:
        pushes, requests = Notifier(), Notifier()
        relay, hour = requests.subscribe(), 3600
        accepter = DeliveryWriter(database, notify=pushes.notify)
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=Asking(),
            wakeups=pushes.subscribe(),
            notify=requests.notify,
            poll_seconds=hour,
        )
        accepter.start()
        running = asyncio.create_task(worker.run())
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                for before, after in (("a" * 40, "b" * 40), ("b" * 40, "a" * 40)):
                    await accepter.accept(arrival(move(before, after), received_at=now))
                    await relay.wait(hour)
        finally:
            running.cancel()
            await asyncio.wait({running})
            await accepter.stop()

    asyncio.run(scenario())
    assert states(database)["main"] == ("planned", "nothing runs")


def is_released(database: Database) -> bool:
    """Return whether no worker has the lease of the only connection."""
    with database.reading() as conn:
        return conn.execute(leases.select()).one().owner is None


@pytest.mark.parametrize("work", [CLAIMS.next, CLAIMS.claim], ids=["next", "claim"])
@pytest.mark.parametrize(
    ("error", "logged"),
    [(StoreUnavailable("locked"), []), (ValueError("a bug"), ["the worker failed"])],
    ids=["store", "bug"],
)
def test_a_failure_at_the_store_ends_no_worker(
    database: FaultyDatabase, work: Work, error: Exception, logged: list[str]
) -> None:
    """The store logs its outage once for all tasks."""
    pushed(database, "main")
    database.failing[work] = error
    with capture_logs() as logs:
        done = lambda: states(database)["main"][0] == "planned" and is_released(database)  # noqa: E731
        asyncio.run(worked(database, Scripted(), done, poll_seconds=0.01))
    failures = [one["event"] for one in logs if one["log_level"] in {"warning", "error"}]
    assert failures == logged


@pytest.mark.parametrize(
    ("error", "poll", "logged"),
    [
        (LeaseLost("another has it"), 3600.0, ["work handed over"]),
        (StoreUnavailable("locked"), 0.01, []),
        (ValueError("a bug"), 0.01, ["the worker failed"]),
    ],
    ids=["lost", "store", "bug"],
)
def test_a_failure_while_recording_is_told(
    database: FaultyDatabase, error: Exception, poll: float, logged: list[str]
) -> None:
    """Nothing is recorded then, and the push stays pending. A lost lease costs no pause."""
    pushed(database, "main")
    database.failing[work_queue.settle] = error
    with capture_logs() as logs:
        tried = lambda: not database.failing and len(database.calls_of(CLAIMS.next)) > 1  # noqa: E731
        asyncio.run(worked(database, Scripted(), tried, poll_seconds=poll))
    failures = [one["event"] for one in logs if one["log_level"] in {"warning", "error"}]
    assert (failures, states(database)["main"][0]) == (logged, "pending")


def test_who_has_lost_the_lease_stops_its_fetch(
    database: FaultyDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker has taken over; this worker continues with other connections."""
    monkeypatch.setattr("gateway.worker.worker._RENEW_SECONDS", 0.01)
    now = datetime.now(UTC)
    pushed(database, "main")
    connection(database, "c2", created_at=now, updated_at=now)
    with database.writing() as conn:
        later = now + timedelta(milliseconds=1)
        accept.record(
            conn,
            [arrival(move("a" * 40, "b" * 40, "refs/heads/other"), connection="c2", received_at=later)],
        )
    stopped: list[str] = []

    class Hangs(Scripted):
        async def fetch(
            self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
        ) -> dict[int, FetchError]:
            if connection.id == "c1":
                database.failing[work_queue.renew] = LeaseLost("another has it")
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped.append(connection.id)
            return await super().fetch(connection, updates, progress)

    done = lambda: states(database)["other"][0] == "planned" and stopped  # noqa: E731
    asyncio.run(worked(database, Hangs(), done))
    assert (stopped, states(database)["main"][0]) == (["c1"], "pending")
    assert database.calls_of(CLAIMS.claim)
    assert database.calls_of(work_queue.renew)
    for call in database.calls_of(CLAIMS.claim, work_queue.renew):
        assert round((call.kwargs["until"] - call.called_at).total_seconds()) == 60


def test_a_lease_outlives_two_renewals_that_come_late() -> None:
    """A worker that is busy for a moment keeps its connection."""
    assert LEASE.total_seconds() >= 3 * _RENEW_SECONDS


def test_a_worker_can_be_ended_while_the_store_is_away(database: FaultyDatabase) -> None:
    """Its lease expires by itself."""
    pushed(database, "main")
    stages = NeverEnds()
    database.failing[work_queue.give_back] = StoreUnavailable("away")

    async def scenario() -> bool:
        notifier = Notifier()
        worker = Worker(
            name="w",
            database=database,
            claims=CLAIMS,
            stages=stages,
            wakeups=notifier.subscribe(),
            notify=notifier.notify,
        )
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(WAIT_SECONDS):
            await stages.began.wait()
        running.cancel()
        await asyncio.wait({running})
        return running.cancelled()

    assert asyncio.run(scenario())
    assert database.failing == {}


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (RemoteSilent("no answer in time"), [False, True]),
        (RemoteRefuses("no such repository"), [True, True]),
        (RemoteUnavailable("this may be anything"), [True]),
    ],
)
def test_it_is_noted_whether_a_git_host_answers(
    database: Database, error: FetchError, answers: list[bool]
) -> None:
    """Hosts that hang get few places; a host that denies access counts as answering."""
    pushed(database, "main")
    observed: list[bool] = []

    class Observed(SilentHosts):
        def record(self, url: str, *, answers: bool, now: datetime) -> None:
            observed.append(answers)
            super().record(url, answers=answers, now=now)

    def done() -> bool:
        with database.writing() as conn:
            work_queue.make_due(conn, "c1", now=datetime.now(UTC))
        return states(database)["main"][0] == "planned"

    claims = Claims(process="p", silent=Observed())
    asyncio.run(worked(database, Failing(error), done, claims=claims))
    assert observed == answers


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


def test_a_store_that_is_away_while_planning_is_the_end_of_no_push(database: FaultyDatabase) -> None:
    """It stays pending, and its lease is left to expire."""
    stages = Scripted(main=[StoreUnavailable("away")])
    pushed(database, "main")
    claimed_again = lambda: stages.planned and len(database.calls_of(CLAIMS.next)) > 2  # noqa: E731
    asyncio.run(worked(database, stages, claimed_again))
    assert states(database)["main"] == ("pending", None)


def test_a_bug_in_planning_is_the_end_of_its_own_push(database: Database) -> None:
    """The delivery shows the error's name; the log has the rest."""
    stages = Scripted(odd=[ValueError("secret")])
    pushed(database, "odd", "main")
    asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "planned"))
    assert states(database)["odd"] == ("failed", "internal error (ValueError): see the log")


class Clock:
    """The worker's clock, which only the stages move."""

    def __init__(self) -> None:
        """Begin anywhere."""
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


class Timed(Scripted):
    """Stages that take time by the worker's clock, make requests, and count what is recorded meanwhile."""

    def __init__(
        self, database: Database, clock: Clock, *, plan_seconds: float = 0, body: bytes = b""
    ) -> None:
        """Take this long for each plan, and make a request with this body, if given."""
        super().__init__()
        self._database, self._clock = database, clock
        self._plan_seconds, self._body = plan_seconds, body
        self.recorded: list[int] = []

    async def fetch(
        self, connection: Connection, updates: Sequence[PendingUpdate], progress: Callable[[str], None]
    ) -> dict[int, FetchError]:
        """Take seven seconds."""
        self._clock.now += 7
        return await super().fetch(connection, updates, progress)

    async def plan(self, connection: Connection, update: PendingUpdate) -> Settlement:
        """Take some time; note how many pushes have ended."""
        ended = [state for state, _ in states(self._database).values() if state != "pending"]
        self.recorded.append(len(ended))
        self._clock.now += self._plan_seconds
        settlement = await super().plan(connection, update)
        return replace(settlement, requests=(request_of(update, self._body),) if self._body else ())


def request_of(update: PendingUpdate, body: bytes) -> NewRequest:
    """Return a request of a push."""
    return NewRequest(
        id=f"ex_{update.seq}",
        connection="c1",
        delivery=update.delivery,
        project="digits",
        trigger="train",
        target="train",
        subject="",
        body=body,
        lane=None,
        is_latest_only=False,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the worker's clock."""
    clock = Clock()
    monkeypatch.setattr("gateway.worker.worker.time", clock)
    return clock


BRANCHES = ("b1", "b2", "b3", "b4", "b5")


def test_what_is_planned_in_a_turn_is_recorded_at_its_end(database: Database, clock: Clock) -> None:
    """The push that is being planned when the turn ends is completed; the rest has another turn."""
    stages = Timed(database, clock, plan_seconds=5)
    pushed(database, *BRANCHES)
    asyncio.run(worked(database, stages, lambda: len(stages.planned) == 5))
    assert stages.recorded == [0, 0, 0, 3, 3]


def test_large_requests_are_recorded_before_more_are_planned(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together they would fill the memory."""
    monkeypatch.setattr("gateway.worker.outcomes._MAX_BYTES", 8)
    stages = Timed(database, clock, body=b"4444")
    pushed(database, *BRANCHES)
    asyncio.run(worked(database, stages, lambda: len(stages.planned) == 5))
    assert stages.recorded == [0, 0, 0, 3, 3]


def test_the_stages_of_a_push_are_measured(database: Database, clock: Clock) -> None:
    """In seconds for the metrics, and in milliseconds in the log."""
    names = ("fetch", "plan", "received to planned")

    def sums() -> list[float]:
        return [STAGE.labels(stage)._sum.get() for stage in names]  # noqa: SLF001

    before = sums()
    pushed(database, "main", received_at=datetime.now(UTC) - timedelta(hours=1))
    with capture_logs() as logs:
        stages = Timed(database, clock, plan_seconds=3)
        asyncio.run(worked(database, stages, lambda: states(database)["main"][0] == "planned"))
    fetch, plan, whole = [round(after - was) for was, after in zip(before, sums(), strict=True)]
    assert (fetch, plan, whole // 60) == (7, 3, 60)
    [line] = [one for one in logs if one["event"] == "push settled"]
    assert (line["fetch_ms"], line["plan_ms"], line["since_received_ms"] // 60_000) == (7000, 3000, 60)


@pytest.mark.parametrize(("has_request", "has_event"), [(False, False), (True, False), (False, True)])
def test_whoever_publishes_is_rung_for_if_there_is_something_to_publish(
    database: Database, *, has_request: bool, has_event: bool
) -> None:
    """A request or an event."""
    rung: list[str] = []
    event = NewEvent(
        id="ev_1", connection="c1", delivery="", name="push.fetched", project="digits", subject="", body=b"{}"
    )

    def announce(_connection: Connection, settlement: Settlement) -> Settlement:
        update = settlement.update
        return replace(
            settlement,
            requests=(request_of(update, b"{}"),) if has_request else (),
            events=(replace(event, delivery=update.delivery),) if has_event else (),
        )

    pushed(database, "main")

    done = lambda: states(database)["main"][0] == "planned" and is_released(database)  # noqa: E731
    asyncio.run(worked(database, Scripted(), done, announce=announce, notify=lambda: rung.append("rung")))
    assert rung == ["rung"] * (has_request or has_event)


@pytest.mark.parametrize("tries", [0, 3])
def test_a_remote_that_is_away_is_tried_again_after_twice_the_time(database: Database, tries: int) -> None:
    """A second at first; the log has the number of the try and how many pushes wait."""
    pushed(database, "main", "topic")
    with database.writing() as conn:
        conn.execute(leases.update().values(attempts=tries))
    stages = Failing(RemoteUnavailable("no answer"))
    reasons = lambda: {reason for _, reason in states(database).values()} == {"no answer"}  # noqa: E731
    with capture_logs() as logs:
        asyncio.run(worked(database, stages, reasons, poll_seconds=3600))
    [line] = [one for one in logs if one["event"] == "fetch postponed"]
    assert (line["waiting"], line["failed_tries"]) == (2, tries + 1)
    delay = 2**tries
    assert 0.75 * delay - 0.1 <= line["next_try_in_s"] <= delay
    with database.reading() as conn:
        lease = conn.execute(leases.select()).one()
    assert lease.attempts == tries + 1
    assert timedelta(0) < lease.due_at - datetime.now(UTC) <= timedelta(seconds=delay)


@pytest.mark.parametrize("whole", [True, False], ids=["repository", "submodule"])
def test_an_outage_of_less_than_three_days_is_no_end(database: Database, *, whole: bool) -> None:
    """Whether the repository is unavailable, or something that only one push needs."""
    error = RemoteUnavailable("no answer")
    stages = Failing(error) if whole else Scripted(main=[error])
    pushed(database, "main", received_at=datetime.now(UTC) - timedelta(days=3) + timedelta(hours=1))
    asyncio.run(worked(database, stages, lambda: states(database)["main"][1], poll_seconds=3600))
    assert states(database)["main"] == ("pending", "no answer")


def test_what_one_push_alone_needs_is_looked_for_after_twice_the_time(database: Database) -> None:
    """As with a repository."""
    pushed(database, "main")
    with database.writing() as conn:
        conn.execute(ref_updates.update().values(tries=4))
    stages = Scripted(main=[RemoteUnavailable("no answer")])
    with capture_logs() as logs:
        asyncio.run(worked(database, stages, lambda: states(database)["main"][1], poll_seconds=3600))
    [line] = [one for one in logs if one["event"] == "push postponed"]
    assert line["failed_tries"] == 5
    wait = datetime.fromisoformat(line["next_try_at"]) - datetime.now(UTC)
    assert 8 < wait.total_seconds() <= 16


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
