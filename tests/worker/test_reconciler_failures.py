"""The reconciler when remotes, stores, clocks or processes fail."""

import asyncio
import dataclasses
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.errors import RemoteUnavailable, StoreUnavailable
from gateway.metrics import REGISTRY
from gateway.store import connections
from gateway.store.database import Database
from gateway.store.tables import reconciliations as reconciliations_table
from testing.records import A, B
from testing.service import WAIT_SECONDS
from tests.worker.reconciling import ANY_SECONDS, MAIN, Gateway, T, due, put_off


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

    def failures() -> float:
        name = "pushgate_reconciliation_seconds_count"
        return REGISTRY.get_sample_value(name, {"outcome": "failed"}) or 0

    before = failures()
    gateway.remote.fails = error
    assert gateway.look(after=331)
    assert gateway.state().reason == reason
    assert failures() == before + 1
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
