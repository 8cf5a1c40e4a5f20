"""The reconciler on a real store, with a remote and a clock of the test."""

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from structlog.testing import capture_logs

from gateway.errors import RemoteUnavailable, StoreUnavailable
from gateway.store import accept, connections, deliveries, reconciliations
from gateway.store.connections import Connection, OtherRepository
from gateway.store.database import Database
from gateway.store.ids import delivery_id
from gateway.store.notify import Notifier
from gateway.store.tables import reconciliations as reconciliations_table
from gateway.worker.reconciler import Reconciler, differences
from testing import records
from testing.records import NOW, A, B, C, arrival, move
from testing.service import WAIT_SECONDS

MAIN = "refs/heads/main"
ANY_SECONDS = 10.0
T = TypeVar("T")


@dataclass
class Remote:
    """A remote that returns the test's refs, once `asked` has ended."""

    shown: dict[str, str]
    asked: Callable[[], Awaitable[None]] | None = None
    fails: Exception | None = None
    looks: int = 0

    async def refs(self, _connection: Connection) -> dict[str, str]:
        """Return the test's refs."""
        self.looks += 1
        shown = dict(self.shown)
        if self.asked is not None:
            await self.asked()
        if self.fails is not None:
            raise self.fails
        return shown


@dataclass
class Gateway:
    """A reconciler, its store, and the time."""

    database: Database
    remote: Remote
    now: datetime = NOW
    notified_at: list[datetime] = field(default_factory=list)

    def reconciler(self) -> Reconciler:
        """Return the reconciler."""
        return Reconciler(
            database=self.database,
            remotes=self.remote,
            wakeups=Notifier().subscribe(),
            notify=lambda: self.notified_at.append(self.now),
            every=300,
            grace=10,
            per_host=0,
            clock=lambda: self.now,
        )

    def look(self, *, after: float = 0) -> bool:
        """Do the reconciliation that is due so many seconds later; return whether one was."""
        self.now += timedelta(seconds=after)
        return asyncio.run(self.reconciler().reconcile_next())

    def deliver(self, before: str | None, after: str | None) -> None:
        """Record a webhook that reports a move of main."""
        sent = arrival(move(before, after), id=delivery_id(self.now), received_at=self.now)
        with self.database.writing() as conn:
            accept.record(conn, [sent])

    def request(self) -> None:
        """Request a reconciliation now."""
        with self.database.writing() as conn:
            reconciliations.request(conn, "c1", now=self.now)

    def state(self) -> reconciliations.ReconciliationState:
        """Return the state of the connection's reconciliations."""
        with self.database.reading() as conn:
            return reconciliations.states(conn, ["c1"])["c1"]

    def position(self) -> str | None:
        """Return the known position of main."""
        with self.database.reading() as conn:
            return reconciliations.known_refs(conn, "c1").get(MAIN)


@pytest.fixture
def gateway(tmp_path: Path, migrated: Path) -> Iterator[Gateway]:
    """Return a gateway that has looked once, at a remote with main at A."""
    shutil.copyfile(migrated, tmp_path / "test.db")
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    records.connection(database)
    gateway = Gateway(database, Remote({MAIN: A}))
    assert gateway.look()
    yield gateway
    database.close()


def test_the_second_look_is_put_off_and_not_waited_for(gateway: Gateway) -> None:
    """Its slot is free meanwhile; after the second look the worker is notified of the moves."""
    gateway.remote.shown = {MAIN: B}
    assert gateway.look(after=331)
    assert not gateway.look(after=9)
    assert (gateway.position(), gateway.notified_at) == (A, [])
    assert gateway.look(after=1)
    assert (gateway.position(), gateway.notified_at) == (B, [gateway.now])
    assert gateway.remote.looks == 3


def test_a_fetch_within_the_grace_confirms_nothing(gateway: Gateway) -> None:
    """The remote may lag for all of it: only a look after it takes a ref back."""
    for before, after in ((A, B), (B, C)):
        gateway.deliver(before, after)
        gateway.remote.shown = {MAIN: after}
        gateway.look(after=8000)
    gateway.remote.shown = {MAIN: B}
    assert gateway.look(after=8000)
    gateway.request()
    assert gateway.look(after=1)
    assert (gateway.position(), gateway.notified_at) == (C, [])
    assert gateway.look(after=10)
    assert (gateway.position(), gateway.notified_at) == (B, [gateway.now])


def test_a_fetch_takes_no_ref_back_to_a_position_that_was_learned(gateway: Gateway) -> None:
    """No webhook reported it, but it is not new: a lagging replica shows it."""
    gateway.deliver(A, B)
    gateway.remote.shown = {MAIN: B}
    gateway.look(after=331)
    gateway.remote.shown = {MAIN: A}
    gateway.request()
    assert gateway.look(after=1)
    gateway.remote.shown = {MAIN: B}
    assert gateway.look(after=10)
    assert (gateway.position(), gateway.notified_at) == (B, [])


def test_a_webhook_within_the_grace_is_the_one_that_counts(gateway: Gateway) -> None:
    """The push was on its way when the first look saw it."""
    gateway.remote.shown = {MAIN: B}
    assert gateway.look(after=331)
    gateway.deliver(A, B)
    assert gateway.look(after=10)
    assert (gateway.position(), gateway.notified_at, gateway.state().delivery) == (B, [], None)


def test_a_webhook_while_the_remote_answers_is_not_undone(gateway: Gateway) -> None:
    """What the remote showed is from before it."""

    async def push() -> None:
        gateway.deliver(A, B)

    gateway.remote.asked = push
    for after in (331, 10, 331):
        gateway.look(after=after)
    assert (gateway.position(), gateway.notified_at) == (B, [])


def test_a_fetch_that_is_asked_for_during_a_look_is_done_after_it(gateway: Gateway) -> None:
    """It is expected to find what was pushed before it was requested."""

    async def ask() -> None:
        gateway.remote.asked = None
        with gateway.database.writing() as conn:
            reconciliations.request(conn, "c1", now=gateway.now)

    gateway.remote.asked = ask
    assert gateway.look(after=331)
    assert gateway.look()
    assert gateway.remote.looks == 3
    assert not gateway.look()


def test_a_look_that_is_cancelled_is_given_back(gateway: Gateway) -> None:
    """The next reconciler does it at once."""
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    async def begin_and_end() -> None:
        task = asyncio.create_task(gateway.reconciler().reconcile_next())
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    gateway.remote.asked = hang
    gateway.now += timedelta(seconds=331)
    asyncio.run(begin_and_end())
    gateway.remote.asked = None
    assert gateway.look()


def test_a_look_ends_when_it_is_cancelled_while_the_database_is_away(gateway: Gateway) -> None:
    """Otherwise the gateway would go on reconciling, and never stop."""
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    class Away(Database):
        """A store that cannot be written once the look has begun."""

        async def write(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
            if began.is_set():
                raise StoreUnavailable("the database does not answer")
            return await super().write(work, *args, **kwargs)

    async def begin_and_end(database: Database) -> None:
        reconciler = dataclasses.replace(gateway.reconciler(), database=database)
        task = asyncio.create_task(reconciler.run())
        await began.wait()
        task.cancel()
        await asyncio.wait({task}, timeout=ANY_SECONDS)
        assert task.cancelled()

    gateway.remote.asked = hang
    gateway.now += timedelta(seconds=331)
    with closing(Away(str(gateway.database.url))) as database:
        asyncio.run(begin_and_end(database))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RemoteUnavailable("it hangs"), "it hangs"),
        (ValueError("odd"), "internal error (ValueError): see the log"),
    ],
)
def test_every_failure_is_shown_on_the_connection(gateway: Gateway, error: Exception, reason: str) -> None:
    """Also unforeseen errors; the look is retried soon, and a success clears the reason."""
    gateway.remote.fails = error
    assert gateway.look(after=331)
    assert gateway.state().reason == reason
    assert not gateway.look()
    gateway.remote.fails = None
    assert gateway.look(after=15)
    assert gateway.state().reason is None


def test_a_reconciliation_whose_connection_is_deleted_meanwhile_ends(gateway: Gateway) -> None:
    """Nothing is recorded of it."""

    async def delete() -> None:
        with gateway.database.writing() as conn:
            connections.remove(conn, "c1", now=gateway.now)

    gateway.remote.shown, gateway.remote.asked = {MAIN: B}, delete
    assert gateway.look(after=331)
    assert not gateway.look(after=400)


def test_a_tag_that_is_known_by_its_commit_has_not_moved() -> None:
    """Bitbucket Cloud reports the commit of an annotated tag; another commit there is a move."""
    remote = {"refs/tags/v1": B, "refs/tags/v1^{}": A}
    assert differences({"refs/tags/v1": A}, remote) == ()
    [found] = differences({"refs/tags/v1": C}, remote)
    assert (found.before, found.after, found.peeled) == (C, B, A)
    assert differences({"refs/pull/1/head": A}, {}) == ()


@pytest.mark.parametrize(("claimed", "known"), [(B, "2"), (C, "1")])
def test_a_repository_that_was_made_again_is_learned_where_the_remote_agrees(
    gateway: Gateway, claimed: str, known: str
) -> None:
    """Only a remote with the reported refs proves that the delivery is about it."""
    other = OtherRepository(id="2", name="acme/digits", delivery="d1", refs={MAIN: claimed})
    with gateway.database.writing() as conn:
        connections.change(conn, records.made(repository_id="1"))
        sent = arrival(verdict="ignored", received_at=gateway.now, other_repository=other)
        accept.record(conn, [sent])
    gateway.remote.shown = {MAIN: B}
    assert gateway.look()
    with gateway.database.reading() as conn:
        connection = connections.get(conn, "c1")
    assert connection.repository_id == known
    assert connection.other_repository == (None if known == "2" else other)
    with gateway.database.writing() as conn:
        connections.forget_repository(conn, "c1")
        connection = connections.get(conn, "c1")
    assert (connection.repository_id, connection.other_repository) == (None, None)


def due(gateway: Gateway) -> datetime:
    """Return when the next look is due."""
    with gateway.database.reading() as conn:
        found: datetime = conn.execute(reconciliations_table.select()).one().due_at
    return found


def put_off(gateway: Gateway, **values: Any) -> None:
    """Change the state of the connection's reconciliations."""
    with gateway.database.writing() as conn:
        conn.execute(reconciliations_table.update().values(**values))


def test_looks_come_at_the_interval_and_not_all_at_once(gateway: Gateway) -> None:
    """A tenth more or less, so that connections that were made together are not looked at together."""
    waits = set()
    for _ in range(3):
        wait = due(gateway) - gateway.now
        waits.add(wait)
        assert timedelta(seconds=270) <= wait <= timedelta(seconds=330)
        gateway.look(after=331)
    assert len(waits) == 3


def test_without_a_grace_one_look_is_enough(gateway: Gateway) -> None:
    """For connections without webhooks."""
    gateway.remote.shown = {MAIN: B}
    gateway.now += timedelta(seconds=331)
    assert asyncio.run(dataclasses.replace(gateway.reconciler(), grace=0).reconcile_next())
    assert (gateway.position(), gateway.notified_at) == (B, [gateway.now])


def test_what_was_recovered_is_a_delivery_like_any_other(gateway: Gateway) -> None:
    """It shows that it came without a webhook, and what moved."""
    gateway.remote.shown = {MAIN: B}
    gateway.look(after=331)
    gateway.look(after=10)
    with gateway.database.reading() as conn:
        [found] = deliveries.page(conn, connection="c1", verdict=None, before=None, limit=10)
        body = json.loads(deliveries.body(conn, found.id))
    assert (found.source, found.event, found.verdict, found.pusher) == (
        "reconciliation",
        "reconciliation",
        "accepted",
        None,
    )
    assert found.received_at == gateway.now
    assert body == {"updates": [{"ref": MAIN, "before": A, "after": B}]}


def test_a_remote_that_fails_is_left_alone_for_longer_each_time(gateway: Gateway) -> None:
    """15 seconds, 30, and so on, up to an hour; at first again after a success."""
    gateway.remote.fails = RemoteUnavailable("no answer")
    gateway.look(after=331)
    for seconds in (15, 30, 60):
        wait = due(gateway) - gateway.now
        assert timedelta(seconds=0.75 * seconds) <= wait <= timedelta(seconds=seconds)
        gateway.look(after=seconds)
    put_off(gateway, attempts=1000)
    gateway.look(after=120)
    assert timedelta(minutes=45) <= due(gateway) - gateway.now <= timedelta(hours=1)


def test_a_look_of_a_process_that_died_is_done_by_another(gateway: Gateway) -> None:
    """After a quarter of an hour, in which the first process may still be working."""
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    async def die() -> None:
        task = asyncio.create_task(gateway.reconciler().reconcile_next())
        await began.wait()
        with gateway.database.reading() as conn:
            row = conn.execute(reconciliations_table.select()).one()
        task.cancel()
        await asyncio.wait({task})
        # As if the look had not been given back.
        put_off(gateway, due_at=row.due_at, held_until=row.held_until)

    gateway.remote.asked = hang
    gateway.now += timedelta(seconds=331)
    asyncio.run(die())
    gateway.remote.asked = None
    assert not gateway.look(after=14 * 60)
    assert gateway.look(after=60)


@pytest.mark.parametrize(("ahead", "is_due"), [(timedelta(hours=1.6), False), (timedelta(hours=1.8), True)])
def test_a_look_that_a_wrong_clock_put_off_is_done_now(
    gateway: Gateway, ahead: timedelta, *, is_due: bool
) -> None:
    """The longest pause is an hour and a half, and a look takes a quarter of an hour."""
    put_off(gateway, due_at=gateway.now + ahead)
    assert gateway.look() == is_due


def test_a_long_interval_is_not_taken_for_a_wrong_clock(gateway: Gateway) -> None:
    """Connections whose webhooks arrive are reconciled at a twelfth of the configured rate."""
    put_off(gateway, due_at=gateway.now + timedelta(hours=13))
    reconciler = dataclasses.replace(gateway.reconciler(), every=3600)
    assert not asyncio.run(reconciler.reconcile_next())
    put_off(gateway, due_at=gateway.now + timedelta(hours=14))
    assert asyncio.run(reconciler.reconcile_next())


def test_a_host_is_asked_by_so_many_at_once(gateway: Gateway) -> None:
    """Together with the workers that fetch from it."""
    others: list[bool] = []

    async def other() -> None:
        gateway.remote.asked = None
        for per_host in (1, 2):
            reconciler = dataclasses.replace(gateway.reconciler(), per_host=per_host)
            others.append(await reconciler.reconcile_next())

    records.connection(gateway.database, "c2")
    put_off(gateway, due_at=gateway.now)
    gateway.remote.asked = other
    assert gateway.look()
    assert others == [False, True]


@pytest.mark.parametrize("is_agreed", [True, False])
def test_where_webhooks_report_everything_looks_are_rare(gateway: Gateway, *, is_agreed: bool) -> None:
    """A look that agrees with a webhook's push doubles the pause; refs of pull requests do not count."""
    ref = MAIN if is_agreed else "refs/pull/1/head"
    reported = dataclasses.replace(move(A if is_agreed else None, B), ref=ref)
    sent = arrival(reported, received_at=gateway.now)
    with gateway.database.writing() as conn:
        accept.record(conn, [sent])
    gateway.remote.shown = {MAIN: A, ref: B}
    gateway.look(after=331)
    wait = (due(gateway) - gateway.now).total_seconds()
    assert (wait > 500) == is_agreed


def test_an_empty_remote_is_believed_where_nothing_is_known(gateway: Gateway) -> None:
    """A repository without pushes is no faulty remote; nor is one whose branches were all deleted."""
    gateway.remote.shown = {}
    gateway.look(after=331)
    assert "no branches or tags" in (gateway.state().reason or "")
    assert gateway.position() == A
    gateway.deliver(A, None)
    gateway.look(after=15)
    assert gateway.state().reason is None


def test_a_store_that_is_away_is_no_fault_of_the_remote(gateway: Gateway) -> None:
    """The connection shows no reason; the look is repeated when its lease expires."""
    gateway.remote.fails = StoreUnavailable("locked")
    with pytest.raises(StoreUnavailable):
        gateway.look(after=331)
    assert gateway.state().reason is None


@pytest.mark.parametrize(
    ("error", "logged"), [(StoreUnavailable("locked"), []), (ValueError("a bug"), ["the reconciler failed"])]
)
def test_a_failure_at_the_store_ends_no_reconciler(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, error: Exception, logged: list[str]
) -> None:
    """The store logs its outage once for all tasks; afterwards the reconciler continues."""
    errors = [error]

    class Failing(Database):
        async def read(self, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
            if errors:
                raise errors.pop()
            return await super().read(work, *args, **kwargs)

    async def run(database: Database) -> None:
        ended = asyncio.Event()

        async def asked() -> None:
            ended.set()

        gateway.remote.asked = asked
        task = asyncio.create_task(dataclasses.replace(gateway.reconciler(), database=database).run())
        async with asyncio.timeout(WAIT_SECONDS):
            await ended.wait()
        task.cancel()
        await asyncio.wait({task})

    monkeypatch.setattr("gateway.worker.polling.POLL_SECONDS", 0.01)
    gateway.now += timedelta(seconds=331)
    with closing(Failing(str(gateway.database.url))) as database, capture_logs() as logs:
        asyncio.run(run(database))
    assert [one["event"] for one in logs if one["log_level"] in {"warning", "error"}] == logged


def test_only_a_move_that_is_new_is_rung_for(gateway: Gateway) -> None:
    """A look that found nothing wakes no worker."""
    gateway.look(after=331)
    assert gateway.notified_at == []


def test_every_difference_is_found_and_an_odd_ref_hides_none() -> None:
    """In the order of the refs' names: new, moved and deleted ones, but no unchanged ref."""
    tag = "refs/tags/v1"
    remote = {
        "refs/heads/a": A,
        "refs/heads/b": B,
        "refs/heads/d..d": B,
        "refs/heads/e": B,
        tag: B,
        f"{tag}^{{}}": A,
        "refs/tags/v2": C,
    }
    known = {"refs/heads/a": A, "refs/heads/b": A, "refs/heads/c": A, tag: A}
    found = differences(known, remote)
    assert [(one.ref, one.before, one.after, one.peeled) for one in found] == [
        ("refs/heads/b", A, B, None),
        ("refs/heads/c", A, None, None),
        ("refs/heads/e", None, B, None),
        ("refs/tags/v2", None, C, None),
    ]


def test_looks_that_are_due_follow_one_another(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pause between them, however many there are."""
    monkeypatch.setattr("gateway.worker.polling.POLL_SECONDS", 3600)

    async def run() -> None:
        three = asyncio.Event()

        async def asked() -> None:
            if gateway.remote.looks == 4:
                three.set()

        gateway.remote.asked = asked
        task = asyncio.create_task(gateway.reconciler().run())
        async with asyncio.timeout(WAIT_SECONDS):
            await three.wait()
        task.cancel()
        await asyncio.wait({task})

    for name in ("c2", "c3"):
        records.connection(gateway.database, name)
    put_off(gateway, due_at=gateway.now)
    asyncio.run(run())
