"""The reconciler on a real store, with a remote and a clock of the test's own."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import Connection as Transaction

from gateway.errors import RemoteUnavailable, StoreUnavailable
from gateway.reconcile import Reconciler, differences
from gateway.store import connections, deliveries, sweeps
from gateway.store.connections import Connection, OtherRepository
from gateway.store.database import Database
from gateway.store.doorbell import Doorbell
from gateway.store.ids import delivery_id
from tests.store import make
from tests.store.make import NOW, A, B, C, arrival, move

MAIN = "refs/heads/main"
ANY_SECONDS = 10.0
T = TypeVar("T")


@dataclass
class Remote:
    """A remote that shows what the test wants, once `asked` has ended."""

    shown: dict[str, str]
    asked: Callable[[], Awaitable[None]] | None = None
    fails: Exception | None = None
    looks: int = 0

    async def refs(self, _connection: Connection) -> dict[str, str]:
        """Return what the remote shows."""
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
    rung: list[datetime] = field(default_factory=list)

    def reconciler(self) -> Reconciler:
        """Return the reconciler."""
        return Reconciler(
            database=self.database,
            remotes=self.remote,
            news=Doorbell().listener(),
            rings=lambda: self.rung.append(self.now),
            every=300,
            grace=10,
            clock=lambda: self.now,
        )

    def look(self, *, after: float = 0) -> bool:
        """Do the sweep that is due so many seconds later; return whether one was."""
        self.now += timedelta(seconds=after)
        return asyncio.run(self.reconciler().sweep_next())

    def tell(self, before: str | None, after: str | None) -> None:
        """Let a webhook report a move of main."""
        sent = arrival(move(before, after), id=delivery_id(self.now), received_at=self.now)
        with self.database.writing() as transaction:
            deliveries.record(transaction, [sent])

    def ask(self) -> None:
        """Ask for a sweep now."""
        with self.database.writing() as transaction:
            sweeps.ask(transaction, "c1", now=self.now)

    def state(self) -> sweeps.SweepState:
        """Return how the connection's sweeps go."""
        with self.database.reading() as transaction:
            return sweeps.states(transaction, ["c1"])["c1"]

    def position(self) -> str | None:
        """Return where main is known to be."""
        with self.database.reading() as transaction:
            return sweeps.known_refs(transaction, "c1").get(MAIN)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    """Give a gateway that has looked once, at a remote with main at A."""
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    database.migrate()
    make.connection(database)
    gateway = Gateway(database, Remote({MAIN: A}))
    assert gateway.look()
    yield gateway
    database.close()


def test_the_second_look_is_put_off_and_not_waited_for(gateway: Gateway) -> None:
    """The place is free meanwhile; what was found is planned after the second look, and rung for."""
    gateway.remote.shown = {MAIN: B}
    assert gateway.look(after=331)
    assert not gateway.look(after=9)
    assert (gateway.position(), gateway.rung) == (A, [])
    assert gateway.look(after=1)
    assert (gateway.position(), gateway.rung) == (B, [gateway.now])
    assert gateway.remote.looks == 3


def test_a_fetch_within_the_grace_confirms_nothing(gateway: Gateway) -> None:
    """The remote may lag for all of it: only a look after it takes a ref back."""
    for before, after in ((A, B), (B, C)):
        gateway.tell(before, after)
        gateway.remote.shown = {MAIN: after}
        gateway.look(after=8000)
    gateway.remote.shown = {MAIN: B}
    assert gateway.look(after=8000)
    gateway.ask()
    assert gateway.look(after=1)
    assert (gateway.position(), gateway.rung) == (C, [])
    assert gateway.look(after=10)
    assert (gateway.position(), gateway.rung) == (B, [gateway.now])


def test_a_fetch_takes_no_ref_back_to_a_position_that_was_learned(gateway: Gateway) -> None:
    """No webhook has told of it, and yet it is nothing new: here a replica shows it that lags."""
    gateway.tell(A, B)
    gateway.remote.shown = {MAIN: B}
    gateway.look(after=331)
    gateway.remote.shown = {MAIN: A}
    gateway.ask()
    assert gateway.look(after=1)
    gateway.remote.shown = {MAIN: B}
    assert gateway.look(after=10)
    assert (gateway.position(), gateway.rung) == (B, [])


def test_a_webhook_within_the_grace_is_the_one_that_counts(gateway: Gateway) -> None:
    """The push was on its way when the first look saw it."""
    gateway.remote.shown = {MAIN: B}
    assert gateway.look(after=331)
    gateway.tell(A, B)
    assert gateway.look(after=10)
    assert (gateway.position(), gateway.rung, gateway.state().delivery) == (B, [], None)


def test_a_webhook_while_the_remote_answers_is_not_undone(gateway: Gateway) -> None:
    """What the remote showed is from before it."""

    async def push() -> None:
        gateway.tell(A, B)

    gateway.remote.asked = push
    for after in (331, 10, 331):
        gateway.look(after=after)
    assert (gateway.position(), gateway.rung) == (B, [])


def test_a_fetch_that_is_asked_for_during_a_look_is_done_after_it(gateway: Gateway) -> None:
    """It wants to know of what was pushed before it was asked for."""

    async def ask() -> None:
        gateway.remote.asked = None
        with gateway.database.writing() as transaction:
            sweeps.ask(transaction, "c1", now=gateway.now)

    gateway.remote.asked = ask
    assert gateway.look(after=331)
    assert gateway.look()
    assert gateway.remote.looks == 3
    assert not gateway.look()


def test_a_look_that_is_cancelled_is_given_back(gateway: Gateway) -> None:
    """Whoever comes next does it at once."""
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    async def begin_and_end() -> None:
        task = asyncio.create_task(gateway.reconciler().sweep_next())
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
    """Otherwise the gateway would sweep on, and never end."""
    began = asyncio.Event()

    async def hang() -> None:
        began.set()
        await asyncio.Event().wait()

    class Away(Database):
        """Cannot be written any more once the look has begun."""

        async def write(self, work: Callable[[Transaction], T], *, probes: bool = False) -> T:
            if began.is_set():
                raise StoreUnavailable("the database does not answer")
            return await super().write(work, probes=probes)

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
def test_whatever_fails_is_told_on_the_connection(gateway: Gateway, error: Exception, reason: str) -> None:
    """Also what nobody has foreseen; it is tried again soon, and forgotten once it goes well."""
    gateway.remote.fails = error
    assert gateway.look(after=331)
    assert gateway.state().reason == reason
    assert not gateway.look()
    gateway.remote.fails = None
    assert gateway.look(after=15)
    assert gateway.state().reason is None


def test_a_sweep_whose_connection_is_deleted_meanwhile_ends(gateway: Gateway) -> None:
    """Nothing is recorded of it."""

    async def delete() -> None:
        with gateway.database.writing() as transaction:
            connections.remove(transaction, "c1", now=gateway.now)

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
    """Only a remote that has what the delivery reports proves that it is about it."""
    other = OtherRepository(id="2", name="acme/digits", delivery="d1", refs={MAIN: claimed})
    with gateway.database.writing() as transaction:
        connections.change(transaction, make.made(repository_id="1"))
        sent = arrival(verdict="ignored", received_at=gateway.now, other_repository=other)
        deliveries.record(transaction, [sent])
    gateway.remote.shown = {MAIN: B}
    assert gateway.look()
    with gateway.database.reading() as transaction:
        connection = connections.get(transaction, "c1")
    assert connection.repository_id == known
    assert connection.other_repository == (None if known == "2" else other)
    with gateway.database.writing() as transaction:
        connections.forget_repository(transaction, "c1")
        connection = connections.get(transaction, "c1")
    assert (connection.repository_id, connection.other_repository) == (None, None)
