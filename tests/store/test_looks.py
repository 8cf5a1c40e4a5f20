"""Looks: what a reading of the remote's refs means for the known refs."""

from datetime import timedelta

import pytest

from gateway.store import deliveries, looks, reconciliations, work_queue
from gateway.store.database import Database
from gateway.store.reconciliations import ReconciliationState
from gateway.store.tables import refs as refs_table
from testing import records
from testing.records import NOW, A, B, C, move
from tests.store.reconciling import (
    EVERY,
    GRACE,
    LEASE,
    MAIN,
    D,
    after,
    claimed,
    deliver,
    found,
    look,
    position,
    state,
)


def test_a_first_look_takes_nothing_for_a_push(learned: Database) -> None:
    """The existing refs are known from then on, without a second look."""
    assert position(learned) == A
    assert state(learned).due_at == NOW + EVERY
    assert state(learned).delivery is None


def test_a_missed_push_is_taken_once_two_looks_agree(learned: Database) -> None:
    """The first look only makes the second one due sooner."""
    assert look(learned, move(A, B), now=after(6)) is None
    assert position(learned) == A
    assert state(learned).due_at == after(6) + GRACE
    receipt = look(learned, move(A, B), now=after(7))
    assert receipt is not None
    assert receipt.verdict == "accepted"
    assert (position(learned), state(learned).delivery) == (B, receipt.delivery)
    assert state(learned).due_at == after(7) + EVERY
    with learned.reading() as conn:
        silence = reconciliations.silences(conn, ["c1"])["c1"]
    assert (silence.delivery, silence.since) == (receipt.delivery, after(7))
    deliver(learned, move(B, C), now=after(8))
    with learned.reading() as conn:
        assert reconciliations.silences(conn, ["c1"]) == {}
        assert reconciliations.count_silent(conn) == 0


def test_a_move_that_only_the_first_look_saw_is_nothing(learned: Database) -> None:
    """A lagging replica is not trusted, and a different result of the second look has to be confirmed."""
    assert look(learned, move(A, B), now=after(6)) is None
    assert look(learned, move(A, C), now=after(7)) is None
    assert look(learned, agreeing={MAIN: A}, now=after(8)) is None
    assert position(learned) == A


def test_a_webhook_between_two_looks_is_not_repeated(learned: Database) -> None:
    """The second look finds nothing new in its report."""
    look(learned, move(A, B), now=after(6))
    assert deliver(learned, move(A, B), now=after(6.1)).verdict == "accepted"
    assert look(learned, agreeing={MAIN: B}, now=after(7)) is None
    assert position(learned) == B


def test_a_webhook_during_a_look_is_not_taken_back(learned: Database) -> None:
    """The look began before it: what differs then is no move from B to C, or back to A."""
    with learned.writing() as conn:
        reconciliation = reconciliations.claim(conn, now=after(6), until=after(21))
        assert reconciliation is not None
    deliver(learned, move(A, B), now=after(6.1))
    for shown in (move(A, C), move(A, B)):
        with learned.writing() as conn:
            looked = found(shown, now=after(6.2))
            assert looks.record(conn, reconciliation, looked, next_at=after(11)) is None
    with learned.writing() as conn:
        looked = found(now=after(6.3))
        looks.record(conn, reconciliation, looked, next_at=after(11), agreeing={MAIN: A})
    assert position(learned) == B


def test_a_replica_that_lags_takes_no_ref_back(learned: Database) -> None:
    """However often it shows the old position, until the remote has once shown the reported one."""
    deliver(learned, move(A, B), now=after(5))
    for minute in (6, 7, 12, 18, 40):
        with learned.writing() as conn:
            reconciliations.request(conn, "c1", now=after(minute))
        assert look(learned, move(B, A), now=after(minute)) is None
    assert position(learned) == B
    with learned.writing() as conn:
        reconciliations.request(conn, "c1", now=after(41))
    look(learned, agreeing={MAIN: B}, now=after(41))
    assert look(learned, move(B, A), now=after(100)) is None
    receipt = look(learned, move(B, A), now=after(101))
    assert receipt is not None
    assert (receipt.verdict, position(learned)) == ("accepted", A)


def test_what_the_remote_never_shows_is_given_up_in_the_end(learned: Database) -> None:
    """Such as a push that was undone before any look, and whose undoing's webhook was lost."""
    deliver(learned, move(A, B), now=after(5))
    assert look(learned, move(B, A), now=after(70)) is None
    receipt = look(learned, move(B, A), now=after(71))
    assert receipt is not None
    assert position(learned) == A


def test_the_remote_decides_between_positions_whose_order_was_assumed(learned: Database) -> None:
    """No update is planned again for that."""
    deliver(learned, move(A, B), now=after(1))
    deliver(learned, move(C, D), now=after(2))
    assert position(learned) == D
    assert look(learned, move(D, B), now=after(3)) is None
    assert look(learned, move(D, B), now=after(4)) is None
    assert position(learned) == B
    with learned.reading() as conn:
        assert [one.after for one in work_queue.pending(conn, "c1", limit=9)] == [B, D]


def test_who_asks_gets_what_is_new_at_once(learned: Database) -> None:
    """With an answer; a move back is confirmed first, while the request stays open."""
    asked = deliver(learned, now=after(1), asks_for_reconciliation=True)
    receipt = look(learned, move(A, B), now=after(1))
    assert receipt is not None
    with learned.reading() as conn:
        reason = deliveries.get(conn, asked.delivery).reason
    assert (
        reason == f"all refs were compared with the remote's: delivery {receipt.delivery} has what was found"
    )
    asked = deliver(learned, now=after(2), asks_for_reconciliation=True)
    reconciled_at = state(learned).reconciled_at
    deliver(learned, move(B, C), now=after(2.5))
    look(learned, agreeing={MAIN: C}, now=after(3))
    asked = deliver(learned, now=after(4), asks_for_reconciliation=True)
    assert look(learned, move(C, B), now=after(4)) is None
    assert state(learned).reconciled_at == after(3) != reconciled_at
    assert look(learned, move(C, B), now=after(5)) is not None
    with learned.reading() as conn:
        assert "has what was found" in (deliveries.get(conn, asked.delivery).reason or "")


def test_looks_are_rare_where_webhooks_report_everything(learned: Database) -> None:
    """The interval doubles after each look that confirms them; one that finds more makes it short again."""
    now, ids, delays = after(5), [f"{number:040x}" for number in range(1, 20)], []
    before = A
    for one in ids[:6]:
        deliver(learned, move(before, one), now=now)
        look(learned, agreeing={MAIN: one}, now=now + EVERY)
        delays.append((state(learned).due_at - (now + EVERY)) / EVERY)
        before, now = one, state(learned).due_at
    assert delays == [2, 4, 8, 12, 12, 12]
    look(learned, agreeing={MAIN: before}, now=now)
    assert state(learned).due_at == now + 12 * EVERY
    now = state(learned).due_at
    look(learned, move(before, C), now=now, is_sure=True)
    assert state(learned).due_at == now + EVERY


def test_the_requesting_delivery_shows_that_nothing_had_moved(learned: Database) -> None:
    """Or, after the very first look, that it is unknown; then the connection names no delivery."""
    asked = deliver(learned, now=after(1), asks_for_reconciliation=True)
    assert look(learned, agreeing={MAIN: A}, now=after(2)) is None
    with learned.reading() as conn:
        reason = deliveries.get(conn, asked.delivery).reason
    assert reason == "all refs were compared with the remote's: nothing had moved"
    assert state(learned) == ReconciliationState(
        due_at=after(2) + EVERY, tried_at=after(2), reconciled_at=after(2), delivery=None, reason=None
    )
    # The request is answered: the next reconciliation has no requester.
    reconciliation = claimed(learned, after(8))
    assert reconciliation is not None
    assert (reconciliation.asked, reconciliation.asked_by, reconciliation.is_first) == (False, None, False)


def test_the_first_look_cannot_find_what_was_requested(database: Database) -> None:
    """Moves before it are unknown."""
    records.connection(database)
    asked = deliver(database, asks_for_reconciliation=True)
    look(database, move(None, A), now=after(1))
    with database.reading() as conn:
        reason = deliveries.get(conn, asked.delivery).reason or ""
    assert reason.endswith("this was the first look, so it is unknown what has moved")
    assert position(database) == A


@pytest.mark.parametrize(
    ("every", "rare"),
    [(timedelta(hours=6), timedelta(days=1)), (timedelta(days=2), timedelta(days=2))],
    ids=["rare", "rarer by setting"],
)
def test_looks_are_a_day_apart_at_most(database: Database, every: timedelta, rare: timedelta) -> None:
    """Unless configured to be rarer: webhooks that arrived so far guarantee nothing."""
    records.connection(database)
    look(database, move(None, A))
    now, before = after(5), A
    for one in (B, C, D):
        deliver(database, move(before, one), now=now)
        with database.writing() as conn:
            reconciliations.request(conn, "c1", now=now)
            reconciliation = reconciliations.claim(conn, now=now, until=now + LEASE)
            assert reconciliation is not None
            looks.record(conn, reconciliation, found(now=now), next_at=now + every, agreeing={MAIN: one})
        before = one
    assert state(database).due_at == now + rare


def test_positions_that_the_remote_shows_are_noted(
    learned: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many, and only those: a ref at another position was not shown."""
    monkeypatch.setattr(looks, "_PART", 2)
    names = [f"refs/heads/{number}" for number in range(5)]
    records.connection(learned, "c2", url="https://other.example/acme/digits.git", created_at=after(60))
    deliver(learned, *(move(None, B, name) for name in names), now=after(1))
    deliver(learned, move(None, B, names[0]), now=after(1), connection="c2")
    agreeing = {MAIN: A, **dict.fromkeys(names, B), names[0]: C}
    del agreeing[names[2]]
    look(learned, agreeing=agreeing, now=after(6))
    with learned.reading() as conn:
        rows = conn.execute(refs_table.select()).all()
    shown = {(row.connection, row.ref) for row in rows if row.shown == row.generation}
    assert shown == {("c1", name) for name in (MAIN, names[1], names[3], names[4])}
    assert {row.shown_id for row in rows if (row.connection, row.ref) in shown} == {A, B}
    assert {row.shown_id for row in rows if (row.connection, row.ref) not in shown} == {None}


def test_looks_are_rare_only_where_webhooks_report_something(learned: Database) -> None:
    """A quiet repository is no evidence that its webhook works."""
    for minutes in (6, 12):
        look(learned, agreeing={MAIN: A}, now=after(minutes))
        assert state(learned).due_at == after(minutes) + EVERY


def test_without_a_grace_what_waits_for_a_second_look_is_taken_at_once(learned: Database) -> None:
    """As after a start with another setting."""
    assert look(learned, move(A, B), now=after(6)) is None
    assert look(learned, move(A, B), now=after(6) + GRACE, is_sure=True) is not None
    assert position(learned) == B
