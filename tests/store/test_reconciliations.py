"""Reconciliations: when they are due, who claims them, and their state."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
import sqlalchemy

from gateway.store import (
    accept,
    connections,
    deliveries,
    looks,
    other_repositories,
    reconciliations,
    work_queue,
)
from gateway.store.claims import Claims
from gateway.store.database import Database
from gateway.store.other_repositories import OtherRepository
from gateway.store.reconciliations import Failing, Reconciliation
from gateway.store.tables import connections as connections_table
from gateway.store.tables import reconciliations as reconciliations_table
from gateway.store.tables import refs as refs_table
from providers.model import RefUpdate
from testing import records
from testing.records import NOW, A, B, C, arrival, move
from tests.store.reconciling import (
    EVERY,
    GRACE,
    LEASE,
    MAIN,
    D,
    after,
    claimed,
    deliver,
    failed,
    found,
    look,
    position,
    state,
)


def test_only_those_are_failing_whose_last_reconciliation_has_failed(database: Database) -> None:
    """By name; not those that recovered, and no deleted ones."""
    later = NOW + timedelta(minutes=5)
    for which in ("well", "again", "gone", "broken", "also"):
        records.connection(database, which, name=f"acme/{which}")
    with database.writing() as conn:
        while (reconciliation := reconciliations.claim(conn, now=NOW, until=later)) is not None:
            if reconciliation.connection != "well":
                reconciliations.fail(
                    conn, reconciliation, f"{reconciliation.connection} hangs", next_at=later
                )
            if reconciliation.connection == "again":
                found = records.arrival(connection="again", source="reconciliation")
                looks.record(conn, reconciliation, found, next_at=later)
        connections.remove(conn, "gone", now=NOW)
        found_failing = reconciliations.failing(conn, limit=10)
        assert reconciliations.failing(conn, limit=1) == found_failing[:1]
    assert found_failing == [
        Failing(connection=which, name=f"acme/{which}", reason=f"{which} hangs", due_at=later)
        for which in ("also", "broken")
    ]


def test_when_a_look_at_a_remote_was_tried_is_kept(database: Database) -> None:
    """Whether it succeeded or not: a client that requested one identifies it by this time."""
    records.connection(database)
    later = NOW + timedelta(minutes=5)
    with database.writing() as conn:
        assert reconciliations.states(conn, ["c1"])["c1"].tried_at is None
        reconciliation = reconciliations.claim(conn, now=NOW, until=later)
        assert reconciliation is not None
        reconciliations.request(conn, "c1", now=NOW + timedelta(seconds=1))
        reconciliations.fail(conn, reconciliation, "it hangs", next_at=later)
        assert reconciliations.states(conn, ["c1"])["c1"].tried_at == NOW
        reconciliation = reconciliations.claim(conn, now=later, until=later)
        assert reconciliation is not None
        looks.record(conn, reconciliation, records.arrival(source="reconciliation"), next_at=later)
        assert reconciliations.states(conn, ["c1"])["c1"].tried_at == later


def test_pushes_in_the_wrong_order_have_the_remote_looked_at_soon(learned: Database) -> None:
    """If the order is only assumed; moves in order request no look."""
    deliver(learned, move(A, B), now=after(1))
    assert state(learned).due_at == NOW + EVERY
    deliver(learned, move(C, D), now=after(2))
    assert state(learned).due_at == after(2) + timedelta(seconds=5)


def test_a_question_during_a_look_is_answered_by_the_next(learned: Database) -> None:
    """Another delivery requested one meanwhile: the running look does not count for it."""
    with learned.writing() as conn:
        reconciliation = reconciliations.claim(conn, now=after(6), until=after(21))
        assert reconciliation is not None
    asked = deliver(learned, now=after(6.1), asks_for_reconciliation=True)
    with learned.writing() as conn:
        looks.record(conn, reconciliation, found(now=after(6.2)), next_at=after(11))
        assert deliveries.get(conn, asked.delivery).reason is None
        assert reconciliations.is_due(conn, now=after(6.2))
        again = reconciliations.claim(conn, now=after(6.3), until=after(21.3))
        assert again is not None
        assert (again.asked, again.asked_by) == (True, asked.delivery)


def test_a_reconciliation_that_is_given_back_is_due_at_once(learned: Database) -> None:
    """With its requester, and the seen refs."""
    look(learned, move(A, B), now=after(6))
    with learned.writing() as conn:
        reconciliation = reconciliations.claim(conn, now=after(7), until=after(22))
        assert reconciliation is not None
        assert reconciliations.claim(conn, now=after(8), until=after(23)) is None
        reconciliations.give_back(conn, reconciliation, now=after(8))
        again = reconciliations.claim(conn, now=after(8), until=after(23))
    assert again is not None
    [seen] = again.seen.values()
    assert seen[:2] == [A, B]


def test_a_look_at_a_connection_that_was_deleted_takes_no_place(database: Database) -> None:
    """Its place would otherwise be taken until the lease's end."""
    records.connection(database)
    records.connection(database, "c2")
    with database.writing() as conn:
        first = reconciliations.claim(conn, now=NOW, until=NOW + LEASE, per_host=1)
        assert first is not None
        assert reconciliations.claim(conn, now=NOW, until=NOW + LEASE, per_host=1) is None
        connections.remove(conn, first.connection, now=NOW)
        assert reconciliations.claim(conn, now=NOW, until=NOW + LEASE, per_host=1) is not None


def test_a_reconciliation_that_failed_says_why_and_is_tried_again(learned: Database) -> None:
    """On the connection, and on the delivery that requested it."""
    asked = deliver(learned, now=after(1), asks_for_reconciliation=True)
    with learned.writing() as conn:
        reconciliation = reconciliations.claim(conn, now=after(1), until=after(16))
        assert reconciliation is not None
        reconciliations.fail(conn, reconciliation, "it hangs", next_at=after(3))
        assert reconciliations.claim(conn, now=after(2), until=after(17)) is None
        again = reconciliations.claim(conn, now=after(3), until=after(18))
        assert again is not None
        assert (again.attempts, again.asked_by) == (1, asked.delivery)
        assert deliveries.get(conn, asked.delivery).reason == (
            "all refs will be compared with the remote's; this has failed so far: it hangs"
        )
    assert state(learned).reason == "it hangs"


def test_a_clock_that_was_ahead_stops_no_reconciliations(learned: Database) -> None:
    """A time beyond any delay is due; one at the longest delay is not."""
    look(learned, agreeing={MAIN: A}, now=after(5 * 365 * 24 * 60))
    with learned.writing() as conn:
        assert reconciliations.is_due(conn, now=after(6))
        reconciliation = reconciliations.claim(conn, now=after(6), until=after(21))
        assert reconciliation is not None
        reconciliations.fail(conn, reconciliation, "later", next_at=after(6 + 24 * 60))
        assert not reconciliations.is_due(conn, now=after(7))


def test_a_host_has_so_many_fetches_and_looks_at_once(database: Database) -> None:
    """Both share one limit, across all connections; another host has its own."""
    for name in ("one", "two", "three"):
        records.connection(database, name)
    records.connection(database, "elsewhere", url="https://gitlab.example/acme/digits.git")
    with database.writing() as conn:
        accept.record(conn, [arrival(move(A, B), connection="one")])
        busy = Claims(process="p1", per_host=2)
        assert busy.claim(conn, owner="w1", now=NOW, until=NOW + timedelta(seconds=60)) == ["one"]
        taken = [reconciliations.claim(conn, now=NOW, until=NOW + LEASE, per_host=2) for _ in range(3)]
        names = [reconciliation.connection for reconciliation in taken if reconciliation is not None]
        assert len(names) == 2
        assert "elsewhere" in names
        accept.record(conn, [arrival(move(A, B), connection="two")])
        assert busy.claim(conn, owner="w2", now=NOW, until=NOW + timedelta(seconds=60)) == []


def test_a_host_at_its_limit_delays_no_other(database: Database) -> None:
    """Whatever a previous version of Pushgate has left: rows without a host, and those of deleted ones."""
    for number in range(4):
        records.connection(database, f"full-{number}")
    url = "https://gitlab.example/acme/digits.git"
    for name in ("elsewhere", "deleted", "added"):
        records.connection(database, name, url=url, created_at=NOW + timedelta(seconds=1))
    with database.writing() as conn:
        is_old = reconciliations_table.c.connection == "added"
        conn.execute(reconciliations_table.update().where(is_old).values(host=None))
        is_deleted = connections_table.c.id == "deleted"
        conn.execute(connections_table.update().where(is_deleted).values(deleted_at=NOW))

    def claim(per_host: int) -> str | None:
        now = NOW + timedelta(minutes=1)
        with database.reading() as conn:
            is_due = reconciliations.is_due(conn, now=now, per_host=per_host)
        with database.writing() as conn:
            claimed = reconciliations.claim(conn, now=now, until=now + LEASE, per_host=per_host)
        assert is_due or claimed is None
        return claimed.connection if claimed else None

    taken = [claim(per_host=2) for _ in range(4)]
    assert [str(name).partition("-")[0] for name in taken] == ["full", "full", "elsewhere", "None"]
    assert {claim(per_host=0) for _ in range(4)} == {
        "full-0",
        "full-1",
        "full-2",
        "full-3",
        "added",
        None,
    } - {*taken[:2]}


def test_another_remote_is_learned_from_the_start(learned: Database) -> None:
    """What was seen at the old remote is dropped."""
    deliver(learned, move(A, B), now=after(1))
    with learned.writing() as conn:
        reconciliations.start_over(conn, "c1", now=after(2))
    assert look(learned, move(B, A), now=after(2)) is None
    assert position(learned) == A
    with learned.reading() as conn:
        assert [one.after for one in work_queue.pending(conn, "c1", limit=9)] == [B]


def test_a_process_that_died_leaves_its_reconciliation_to_the_next_start(learned: Database) -> None:
    """The next start does it at once; a postponed one stays postponed."""
    records.connection(learned, "c2", created_at=after(30))
    with learned.writing() as conn:
        assert reconciliations.claim(conn, now=after(6), until=after(21)) is not None
        work_queue.take_over_everything(conn, now=after(7))
        again = reconciliations.claim(conn, now=after(7), until=after(22))
        assert again is not None
        assert again.connection == "c1"
        assert not reconciliations.is_due(conn, now=after(8))


def test_the_reconciliation_that_is_overdue_for_longest_comes_first(database: Database) -> None:
    """From its due time on."""
    for number, name in enumerate(("c1", "c2", "c3")):
        records.connection(database, name, created_at=after(-number))
    assert claimed(database, after(-3)) is None
    with database.reading() as conn:
        assert [reconciliations.is_due(conn, now=after(minutes)) for minutes in (-3, -2)] == [
            False,
            True,
        ]
    taken = [claimed(database, NOW) for _ in range(4)]
    assert [reconciliation and reconciliation.connection for reconciliation in taken] == [
        "c3",
        "c2",
        "c1",
        None,
    ]
    assert taken[0] == Reconciliation(
        connection="c3",
        claimed_at=NOW,
        due_at=NOW + LEASE,
        asked=False,
        asked_by=None,
        attempts=0,
        is_first=True,
    )


def test_a_reconciliation_is_put_off_as_far_as_the_longest_delay(database: Database) -> None:
    """A time further ahead is due, the furthest first: only a wrong clock can have set it."""
    for name, end in (("c1", LEASE), ("c2", 2 * LEASE), ("c3", 3 * LEASE)):
        records.connection(database, name)
        assert claimed(database, NOW, NOW + end) is not None

    def due(now: datetime) -> str | None:
        with database.writing() as conn:
            reconciliation = reconciliations.claim(conn, now=now, until=now + GRACE, longest=2 * LEASE)
        return None if reconciliation is None else reconciliation.connection

    with database.reading() as conn:
        assert not reconciliations.is_due(conn, now=NOW, longest=3 * LEASE)
        assert reconciliations.is_due(conn, now=NOW - GRACE, longest=3 * LEASE)
    # After it the next one is claimed: both are further ahead than this.
    assert [due(NOW - GRACE), due(NOW - GRACE)] == ["c3", "c2"]


def test_failures_of_reconciliations_count_in_a_row(learned: Database) -> None:
    """Until one succeeds, which also clears the reason; the requester is kept."""
    assert failed(learned, after(6)).attempts == 0
    assert failed(learned, after(7)).attempts == 1
    with learned.writing() as conn:
        reconciliations.request(conn, "c1", now=after(8))
    assert (failed(learned, after(8)).asked, state(learned).reason) == (True, "it hangs")
    assert failed(learned, after(9)).asked
    look(learned, agreeing={MAIN: A}, now=after(10))
    assert state(learned).reason is None
    again = failed(learned, after(20))
    assert (again.attempts, again.asked) == (0, False)
    assert not failed(learned, after(21)).asked


def test_a_reconciliation_that_is_given_back_frees_its_place_and_keeps_its_question(
    learned: Database,
) -> None:
    """Unchanged: an unrequested reconciliation does not become a requested one."""
    for is_asked in (False, True):
        if is_asked:
            with learned.writing() as conn:
                reconciliations.request(conn, "c1", now=after(6))
        reconciliation = claimed(learned, after(6))
        assert reconciliation is not None
        with learned.writing() as conn:
            reconciliations.give_back(conn, reconciliation, now=after(6))
            again = reconciliations.claim(conn, now=after(6), until=after(6), per_host=1)
        assert again is not None
        assert again.asked is is_asked


def test_a_question_during_a_look_that_fails_is_not_put_off(learned: Database) -> None:
    """The failure belongs to the earlier look; its place at the host is free again."""
    reconciliation = claimed(learned, after(6))
    assert reconciliation is not None
    with learned.writing() as conn:
        reconciliations.request(conn, "c1", now=after(7))
        reconciliations.fail(conn, reconciliation, "it hangs", next_at=after(60))
        again = reconciliations.claim(conn, now=after(7), until=after(22), per_host=1)
    assert again is not None
    assert (again.asked, again.attempts) == (True, 1)


def test_a_look_whose_lease_has_ended_leaves_that_of_the_next_alone(learned: Database) -> None:
    """After the first one hung, two may do the same look: the second keeps its place and its time."""
    first, second = claimed(learned, after(6)), claimed(learned, after(21))
    assert first is not None
    assert second is not None
    with learned.writing() as conn:
        reconciliations.fail(conn, first, "it hangs", next_at=after(22))
        assert not reconciliations.is_due(conn, now=after(35))
        held = conn.execute(reconciliations_table.select()).one()
    assert held.held_until == held.due_at == after(36)


def test_another_remote_has_its_own_beginning(learned: Database) -> None:
    """The old remote's confirmations, or another repository at its address, do not count; others stay."""
    records.connection(learned, "c2", url="https://other.example/acme/digits.git", created_at=after(60))
    deliver(learned, move(A, B), now=after(1))
    deliver(learned, move(A, B), now=after(1), connection="c2")
    look(learned, agreeing={MAIN: B}, now=after(6))
    assert state(learned).due_at == after(6) + 2 * EVERY
    other = OtherRepository(id="7", name="acme/digits", delivery="d", refs={})
    with learned.writing() as conn:
        for name in ("c1", "c2"):
            other_repositories.claim(conn, name, other)
        reconciliations.start_over(conn, "c1", now=after(7))
        assert connections.get(conn, "c1").other_repository is None
        assert connections.get(conn, "c2").other_repository == other
        rows = conn.execute(refs_table.select()).all()
    assert {row.connection: (row.shown, row.shown_id) for row in rows}["c2"] == (None, None)
    reconciliation = claimed(learned, after(7))
    assert reconciliation is not None
    assert (
        reconciliation.connection,
        reconciliation.asked,
        reconciliation.is_first,
        reconciliation.seen,
    ) == ("c1", True, True, {})
    with learned.writing() as conn:
        looks.record(conn, reconciliation, found(now=after(7)), next_at=after(7) + EVERY)
    assert state(learned).due_at == after(7) + EVERY


def test_states_are_those_of_the_connections_that_are_named(learned: Database) -> None:
    """And no others."""
    records.connection(learned, "c2", created_at=after(60))
    with learned.reading() as conn:
        assert sorted(reconciliations.states(conn, ["c1", "c2", "c3"])) == ["c1", "c2"]
        assert sorted(reconciliations.states(conn, ["c2"])) == ["c2"]
        assert reconciliations.states(conn, ["c2"])["c2"].due_at == after(60)


def _look(conn: sqlalchemy.Connection, reconciliation: Reconciliation, *moves: RefUpdate) -> None:
    looks.record(
        conn, reconciliation, found(*moves, now=after(6)), next_at=after(11), agreeing={"refs/heads/topic": B}
    )


OF_ONE: dict[str, Callable[[sqlalchemy.Connection, Reconciliation], object]] = {
    "request": lambda t, _: reconciliations.request(t, "c1", now=after(7)),
    "start over": lambda t, _: reconciliations.start_over(t, "c1", now=after(7)),
    "give back": lambda t, reconciliation: reconciliations.give_back(t, reconciliation, now=after(7)),
    "fail": lambda t, reconciliation: reconciliations.fail(t, reconciliation, "it hangs", next_at=after(7)),
    "agree": _look,
    "find": lambda t, reconciliation: _look(t, reconciliation, move(A, B)),
    "see": lambda t, reconciliation: looks.record(
        t, reconciliation, found(move(A, B), now=after(6)), next_at=after(11), look_again_at=after(7)
    ),
}


@pytest.mark.parametrize("what", OF_ONE)
def test_a_reconciliation_of_a_connection_leaves_all_others_alone(database: Database, what: str) -> None:
    """Also those reconciled at the same time, and those with a requester."""
    taken = []
    for name in ("c0", "c1", "c2"):
        records.connection(database, name)
        first = claimed(database, NOW)
        assert first is not None
        main = replace(found(move(None, A)), id=f"{name}-first", connection=name)
        asking = arrival(connection=name, asks_for_reconciliation=True, received_at=after(5))
        with database.writing() as conn:
            looks.record(conn, first, main, next_at=after(5))
            topic = move(None, B, "refs/heads/topic")
            accept.record(conn, [arrival(topic, connection=name), asking])
    for _ in range(3):
        reconciliation = claimed(database, after(6))
        assert reconciliation is not None
        taken.append(reconciliation)
    [mine] = [one for one in taken if one.connection == "c1"]
    with database.writing() as conn:
        before = records.rows_of_others(conn, "c1"), records.rows_of_others(conn, "")
        OF_ONE[what](conn, mine)
        assert records.rows_of_others(conn, "c1") == before[0]
        assert records.rows_of_others(conn, "") != before[1]


@pytest.mark.parametrize("second", [6.1, 0.5], ids=["later", "earlier"])
def test_another_question_during_a_look_stays(learned: Database, second: float) -> None:
    """Whichever of the two deliveries has the later id: only the answered request is removed."""
    first = deliver(learned, now=after(1), asks_for_reconciliation=True)
    reconciliation = claimed(learned, after(6))
    assert reconciliation is not None
    assert reconciliation.asked_by == first.delivery
    again = deliver(learned, now=after(second), asks_for_reconciliation=True)
    with learned.writing() as conn:
        looks.record(conn, reconciliation, found(now=after(6.2)), next_at=after(11))
        assert "nothing had moved" in (deliveries.get(conn, first.delivery).reason or "")
        assert deliveries.get(conn, again.delivery).reason is None
        asked = reconciliations.claim(conn, now=after(6.3), until=after(21))
    assert asked is not None
    assert asked.asked_by == again.delivery


def test_a_look_that_ends_leaves_the_place_of_the_next_to_it(learned: Database) -> None:
    """After a request meanwhile, two looks run at once, and each has a place at the host."""
    first = claimed(learned, after(6))
    assert first is not None
    with learned.writing() as conn:
        reconciliations.request(conn, "c1", now=after(7))
    assert claimed(learned, after(7), after(20)) is not None
    with learned.writing() as conn:
        reconciliations.fail(conn, first, "it hangs", next_at=after(60))
        held = conn.execute(reconciliations_table.select()).one()
    assert held.held_until == held.due_at == after(20)


def test_the_refs_of_a_connection_are_its_own(database: Database) -> None:
    """With their last positions, including deleted ones."""
    for number, name in enumerate(("c0", "c1", "c2")):
        records.connection(database, name)
        deliver(database, move(None, A, f"refs/heads/{number}"), connection=name)
        deliver(database, move(A, None, f"refs/heads/{number}"), move(None, B), now=after(1), connection=name)
    with database.reading() as conn:
        assert reconciliations.known_refs(conn, "c1") == {"refs/heads/1": None, MAIN: B}
