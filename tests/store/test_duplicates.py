"""Duplicates: deliveries that repeat an id, or moves that were reported before."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from gateway.store import deliveries
from gateway.store.database import Database
from testing.records import A, B, C, arrival, connection, move
from tests.store.accepting import D, E, got, head, receipts, record

if TYPE_CHECKING:
    from gateway.store.accept import NewDelivery
    from gateway.store.deliveries import Verdict


def test_the_same_delivery_id_is_a_duplicate(database: Database) -> None:
    """A redelivery with the provider's own id changes nothing, even with other content."""
    connection(database)
    assert record(database, arrival(move(A, B), provider_delivery_id="guid")) == ["accepted"]
    assert record(database, arrival(move(B, C), provider_delivery_id="guid")) == ["duplicate"]


def test_the_same_delivery_id_twice_in_one_batch_is_a_duplicate(database: Database) -> None:
    """Two copies in one batch are one delivery."""
    connection(database)
    twice = [arrival(move(A, B), provider_delivery_id="guid") for _ in range(2)]
    assert record(database, *twice) == ["accepted", "duplicate"]


def test_the_same_delivery_id_on_another_connection_is_new(database: Database) -> None:
    """Ids are unique only within a connection."""
    connection(database, "c1")
    connection(database, "c2")
    one = arrival(move(A, B), provider_delivery_id="guid", connection="c1")
    other = arrival(move(A, B), provider_delivery_id="guid", connection="c2")
    assert record(database, one) == ["accepted"]
    assert record(database, other) == ["accepted"]


def test_the_same_change_with_a_new_id_is_a_duplicate(database: Database) -> None:
    """A retry under another id is nothing new."""
    connection(database)
    assert record(database, arrival(move(A, B))) == ["accepted"]
    assert record(database, arrival(move(A, B))) == ["duplicate"]


def test_there_and_back_and_there_again_are_three_updates(database: Database) -> None:
    """Only the latest update of a ref can be repeated: A→B, B→A, A→B all count."""
    connection(database)
    batch = [arrival(move(A, B)), arrival(move(B, A)), arrival(move(A, B))]
    assert record(database, *batch) == ["accepted"] * 3
    with database.reading() as conn:
        last = deliveries.get(conn, batch[2].id)
    assert last.updates[0].generation == 3


def test_a_delivery_with_one_new_ref_is_accepted(database: Database) -> None:
    """Repeated updates in it are marked; new ones are processed."""
    connection(database)
    record(database, arrival(move(A, B)))
    mixed = arrival(move(A, B), move(None, C, "refs/tags/v1"))
    assert record(database, mixed) == ["accepted"]
    with database.reading() as conn:
        kept = deliveries.get(conn, mixed.id)
    assert [update.state for update in kept.updates] == ["duplicate", "pending"]


def test_an_ignored_delivery_does_not_claim_its_id(database: Database) -> None:
    """A delivery that was ignored may be useful when it is sent again."""
    connection(database)
    ignored = arrival(provider_delivery_id="guid", verdict="ignored", reason="other repository")
    assert record(database, ignored) == ["ignored"]
    assert record(database, arrival(move(A, B), provider_delivery_id="guid")) == ["accepted"]


def test_a_failed_write_leaves_the_id_free(database: Database) -> None:
    """The id is claimed with the durable write, or not at all."""
    connection(database)
    unwritable = arrival(connection="there is no such connection")
    with pytest.raises(IntegrityError):
        record(database, arrival(move(A, B), provider_delivery_id="guid"), unwritable)
    assert record(database, arrival(move(A, B), provider_delivery_id="guid")) == ["accepted"]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    walk=st.lists(st.sampled_from([A, B, C]), min_size=2, max_size=12),
    copies=st.lists(st.integers(min_value=1, max_value=3), min_size=12, max_size=12),
    cuts=st.sets(st.integers(min_value=0, max_value=30)),
)
def test_each_move_of_a_walk_counts_once(
    database: Database, walk: Sequence[str], copies: Sequence[int], cuts: set[int]
) -> None:
    """However a branch walks, however often each delivery is repeated, however they share transactions."""
    name = f"walk-{id(walk)}-{arrival().id}"
    connection(database, name)
    steps = [(old, new) for old, new in pairwise(walk) if old != new]
    sent = [
        arrival(move(old, new), connection=name)
        for (old, new), times in zip(steps, copies, strict=False)
        for _ in range(times)
    ]
    verdicts: list[Verdict] = []
    batch: list[NewDelivery] = []
    for number, one in enumerate(sent):
        batch.append(one)
        if number in cuts:
            verdicts += record(database, *batch)
            batch = []
    if batch:
        verdicts += record(database, *batch)
    assert verdicts.count("accepted") == len(steps)


def test_a_duplicate_names_the_delivery_that_it_repeats(three: Database) -> None:
    """The reason names the first delivery, not another repetition; by its id or by its content."""
    record(three, arrival(move(A, B), id="first", provider_delivery_id="guid"))
    [again] = receipts(three, arrival(move(A, B), id="again", provider_delivery_id="guid"))
    assert (again.verdict, again.reason) == ("duplicate", "delivery first had the same id")
    [repeated] = got(three, "again").updates
    assert (repeated.state, repeated.reason, repeated.generation) == ("duplicate", again.reason, 0)
    record(three, arrival(move(B, C), id="second"))
    for name in ("third", "fourth"):
        [receipt] = receipts(three, arrival(move(A, B), id=name))
        assert (receipt.verdict, receipt.reason) == ("duplicate", "delivery first reported the same")
        [repeated] = got(three, name).updates
        assert (repeated.state, repeated.reason) == ("duplicate", receipt.reason)


def test_what_other_connections_and_refs_did_repeats_nothing(three: Database) -> None:
    """Even if it was the same move."""
    walk = [move(A, B), move(B, C)]
    for name in ("c2", "c3"):
        record(three, *(arrival(one, connection=name) for one in walk))
    record(three, *(arrival(replace(one, ref="refs/heads/topic", name="topic")) for one in walk))
    assert record(three, *(arrival(one) for one in walk)) == ["accepted"] * 2
    assert record(three, *(arrival(one) for one in walk)) == ["duplicate"] * 2


def test_what_was_ignored_claims_no_id_and_is_no_duplicate(three: Database) -> None:
    """Also within one batch: only what was accepted is what a redelivery repeats."""
    ignored = arrival(provider_delivery_id="guid", verdict="ignored", reason="of no interest")
    accepted = arrival(move(A, B), provider_delivery_id="guid")
    assert record(three, ignored, accepted) == ["ignored", "accepted"]
    later = [replace(ignored, id="d1"), replace(ignored, id="d2", verdict="unreadable")]
    assert [(one.verdict, one.reason) for one in receipts(three, *later)] == [
        ("ignored", "of no interest"),
        ("unreadable", "of no interest"),
    ]


def test_without_an_id_only_the_moves_decide_what_is_a_duplicate(three: Database) -> None:
    """Some providers send none."""
    sent = [arrival(move(old, new), provider_delivery_id=None) for old, new in ((A, B), (B, C), (A, B))]
    assert record(three, *sent) == ["accepted", "accepted", "duplicate"]


def test_the_head_of_a_pull_request_repeats_only_the_very_same_body(three: Database) -> None:
    """The previous position is not reported: a return to a commit is a new move, a redelivery is not."""
    heads = [(B, b"2"), (A, b"5"), (B, b"4"), (C, b"7"), (B, b"6"), (A, b"8")]
    sent = [arrival(head(after), id=f"d{n}", body=body) for n, (after, body) in enumerate(heads)]
    assert record(three, *sent) == ["accepted"] * 6
    for after, body, repeated in ((B, b"2", "d0"), (B, b"4", "d2"), (C, b"7", "d3"), (A, b"0", "d5")):
        [receipt] = receipts(three, arrival(head(after), body=body))
        assert receipt.reason == f"delivery {repeated} reported the same"
    for body in (b"1", b"3", b"9"):
        assert record(three, arrival(head(B), body=body), arrival(head(A), body=body)) == ["accepted"] * 2


def test_a_delivery_that_moves_a_ref_twice_is_held_against_all_that_is_known(three: Database) -> None:
    """Its second move may repeat an old one, although the first is new."""
    walk = [move(None, C), move(C, E), move(E, B), move(B, C)]
    record(three, *map(arrival, walk))
    twice = arrival(move(C, D), move(C, E))
    assert record(three, twice) == ["accepted"]
    assert [one.state for one in got(three, twice.id).updates] == ["pending", "duplicate"]
