"""The reconciler on a real store, with a remote and a clock of the test."""

import asyncio
import dataclasses
import json
from datetime import timedelta

import pytest

from gateway.store import accept, connections, deliveries, other_repositories, reconciliations
from gateway.store.other_repositories import OtherRepository
from gateway.worker.reconciler import differences
from testing import records
from testing.records import A, B, C, arrival, move
from testing.service import WAIT_SECONDS
from tests.worker.reconciling import MAIN, Gateway, due, put_off


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
        other_repositories.forget(conn, "c1")
        connection = connections.get(conn, "c1")
    assert (connection.repository_id, connection.other_repository) == (None, None)


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


def test_only_a_new_move_notifies_the_worker(gateway: Gateway) -> None:
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
