"""Checks for failed deliveries: what makes them due, and what was requested already."""

from datetime import timedelta
from functools import partial

import pytest

from gateway.crypto.keyring import Keyring
from gateway.store import accept, connections, redeliveries, registrations, uptime
from gateway.store.database import Database
from gateway.store.ids import delivery_id
from gateway.store.redeliveries import Progress
from testing.records import NOW, A, B, arrival, connection, move
from tests.store.accepting import HOUR
from tests.store.reconciling import look

SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)


@pytest.fixture
def watched(database: Database) -> Database:
    """Return a store with two connections whose logs are searched."""
    for name in ("c1", "c2"):
        connection(database, name)
        with database.writing() as conn:
            redeliveries.watch(conn, name, may_lack=False, now=NOW)
            redeliveries.watch(conn, name, may_lack=False, now=NOW + MINUTE)
    return database


def due(database: Database, keyring: Keyring, *, later: timedelta = timedelta()) -> list[str]:
    """Claim all checks that are due so much later than NOW."""
    now = NOW + later
    found = []
    with database.writing() as conn:
        while claimed := redeliveries.claim(conn, keyring, now=now, until=now + 5 * MINUTE):
            found.append(claimed.connection.id)
    return found


def test_a_check_is_due_once_a_day_or_when_something_may_be_missing(
    watched: Database, keyring: Keyring
) -> None:
    """An earlier time counts, and a user's request comes first."""
    assert due(watched, keyring, later=DAY - SECOND) == []
    with watched.writing() as conn:
        redeliveries.make_due(conn, ["c1", "unknown"], at=NOW + MINUTE)
        redeliveries.make_due(conn, ["c1"], at=NOW + 2 * MINUTE)
        assert redeliveries.request(conn, "c2", since=NOW - DAY, now=NOW + MINUTE)
        assert not redeliveries.request(conn, "unknown", since=None, now=NOW)
    assert due(watched, keyring, later=MINUTE) == ["c2", "c1"]
    assert due(watched, keyring, later=MINUTE) == []


def test_an_outage_of_the_endpoint_makes_all_checks_due(watched: Database, keyring: Keyring) -> None:
    """A gap is found by the first process that records after it, and deliveries that failed without one."""
    steps = [
        (timedelta(), [], None),
        (MINUTE, [], None),
        (MINUTE + SECOND, ["c2"], None),
        (3 * MINUTE, [], NOW + MINUTE + SECOND),
        (3 * MINUTE, [], None),
    ]
    found = []
    for later, failed, since in steps:
        with watched.writing() as conn:
            outage = uptime.record(conn, now=NOW + later, tolerated=MINUTE, failed=failed)
        assert outage == since
        found.append(set(due(watched, keyring, later=later)))
    assert found == [set(), set(), {"c2"}, {"c1", "c2"}, set()]


def test_a_check_goes_on_where_it_was_interrupted(watched: Database, keyring: Keyring) -> None:
    """Its end sets from where the next one searches, unless another was requested meanwhile."""
    later = NOW + DAY
    progress = Progress(began_at=later, cursor="page 2")
    with watched.writing() as conn:
        redeliveries.forget(conn, "c2")
        claim = partial(redeliveries.claim, conn, keyring, until=later + MINUTE)
        first = claim(now=later)
        assert first is not None
        assert (first.since, first.progress) == (NOW, None)
        assert first.obstacle == "the webhook is not registered"
        redeliveries.interrupt(conn, first, progress, next_at=later, reason="slow")
        assert claim(now=later - SECOND) is None
        second = claim(now=later)
        assert second is not None
        assert (second.progress, second.attempts) == (progress, 1)
        redeliveries.make_due(conn, ["c1"], at=later)
        redeliveries.finish(conn, second, since=later, now=later, next_at=later + DAY)
        third = claim(now=later)
        assert third is not None
        assert third.since == NOW
        redeliveries.finish(conn, third, since=later, now=later, next_at=later)
        fourth = claim(now=later)
        assert fourth is not None
        assert (fourth.since, fourth.progress, fourth.attempts) == (later, None, 0)


def test_what_arrived_is_found_by_the_providers_id(watched: Database) -> None:
    """Of this connection, since a moment, whatever the verdict."""
    for name, verdict, at in (("c1", "ignored", NOW), ("c1", "ignored", NOW - DAY), ("c2", "accepted", NOW)):
        ids = {"id": delivery_id(at), "provider_delivery_id": f"{name} {at}"}
        new = arrival(connection=name, verdict=verdict, received_at=at, **ids)
        with watched.writing() as conn:
            accept.record(conn, [new])
    guids = [f"{name} {at}" for name in ("c1", "c2") for at in (NOW, NOW - DAY)]
    with watched.reading() as conn:
        found = redeliveries.arrived(conn, "c1", guids, since=NOW - MINUTE)
    assert found == {f"c1 {NOW}"}


def test_a_deleted_connection_is_not_checked(watched: Database, keyring: Keyring) -> None:
    """Nor one whose webhook was removed."""
    with watched.writing() as conn:
        connections.remove(conn, "c1", now=NOW)
        registrations.request_removal(conn, "c1", now=NOW)
        assert redeliveries.summary(conn, "c1") is None
    assert due(watched, keyring, later=DAY) == ["c2"]


def test_a_push_that_no_webhook_reported_makes_a_check_due(learned: Database, keyring: Keyring) -> None:
    """Other events may have been missed as well; a look that finds nothing changes nothing."""
    with learned.writing() as conn:
        redeliveries.watch(conn, "c1", may_lack=False, now=NOW)
    look(learned, now=NOW + HOUR, agreeing={"refs/heads/main": A})
    assert due(learned, keyring, later=HOUR) == []
    assert look(learned, move(A, B), now=NOW + DAY / 2, is_sure=True) is not None
    assert due(learned, keyring, later=DAY / 2) == ["c1"]
