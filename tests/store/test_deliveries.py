"""What is new, and what is a duplicate."""

from collections.abc import Sequence
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from gateway.store import connections, deliveries
from gateway.store.database import Database
from gateway.store.deliveries import Arrival, Verdict
from gateway.store.vault import Vault
from tests.store.make import NOW, A, B, C, arrival, connection, move


def record(database: Database, *arrivals: Arrival) -> list[Verdict]:
    """Record a batch; return the verdicts."""
    with database.writing() as transaction:
        return [receipt.verdict for receipt in deliveries.record(transaction, arrivals)]


def test_a_new_push_is_accepted(database: Database) -> None:
    """The delivery and its update can be read again, as they came."""
    connection(database)
    sent = arrival(move(A, B))
    assert record(database, sent) == ["accepted"]
    with database.reading() as transaction:
        kept = deliveries.get(transaction, sent.id)
        assert deliveries.body(transaction, sent.id) == sent.body
    assert (kept.verdict, kept.received_at, kept.pusher) == ("accepted", NOW, "ada")
    [update] = kept.updates
    assert (update.update, update.state, update.generation) == (move(A, B), "pending", 1)


def test_the_same_delivery_id_is_a_duplicate(database: Database) -> None:
    """A redelivery with the provider's own id changes nothing, also when it claims something else."""
    connection(database)
    assert record(database, arrival(move(A, B), provider_delivery_id="guid")) == ["accepted"]
    assert record(database, arrival(move(B, C), provider_delivery_id="guid")) == ["duplicate"]


def test_the_same_delivery_id_twice_in_one_batch_is_a_duplicate(database: Database) -> None:
    """Two copies that wait at the door together are one delivery."""
    connection(database)
    twice = [arrival(move(A, B), provider_delivery_id="guid") for _ in range(2)]
    assert record(database, *twice) == ["accepted", "duplicate"]


def test_the_same_delivery_id_on_another_connection_is_new(database: Database) -> None:
    """Ids are a connection's own."""
    connection(database, "c1")
    connection(database, "c2")
    one = arrival(move(A, B), provider_delivery_id="guid", connection="c1")
    other = arrival(move(A, B), provider_delivery_id="guid", connection="c2")
    assert record(database, one) == ["accepted"]
    assert record(database, other) == ["accepted"]


def test_the_same_change_with_a_new_id_is_a_duplicate(database: Database) -> None:
    """A retry under another id tells nothing new."""
    connection(database)
    assert record(database, arrival(move(A, B))) == ["accepted"]
    assert record(database, arrival(move(A, B))) == ["duplicate"]


def test_there_and_back_and_there_again_are_three_updates(database: Database) -> None:
    """Only the latest update of a ref can be repeated: A→B, B→A, A→B all count."""
    connection(database)
    batch = [arrival(move(A, B)), arrival(move(B, A)), arrival(move(A, B))]
    assert record(database, *batch) == ["accepted"] * 3
    with database.reading() as transaction:
        last = deliveries.get(transaction, batch[2].id)
    assert last.updates[0].generation == 3


def test_a_delivery_with_one_new_ref_is_accepted(database: Database) -> None:
    """What is repeated in it is marked; what is new is carried on."""
    connection(database)
    record(database, arrival(move(A, B)))
    mixed = arrival(move(A, B), move(None, C, "refs/tags/v1"))
    assert record(database, mixed) == ["accepted"]
    with database.reading() as transaction:
        kept = deliveries.get(transaction, mixed.id)
    assert [update.state for update in kept.updates] == ["duplicate", "pending"]


def test_an_ignored_delivery_does_not_claim_its_id(database: Database) -> None:
    """What was of no use when it came may be of use when it comes again."""
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


def test_the_use_of_a_secret_is_remembered(database: Database, vault: Vault) -> None:
    """During a rotation one sees whether the old secret is still in use."""
    connection(database)
    with database.writing() as transaction:
        connections.add_secret(transaction, vault, "c1", b"old", now=NOW)
        connections.add_secret(transaction, vault, "c1", b"new", now=NOW)
        new, old = connections.live_secrets(transaction, vault, "c1")
    later = NOW + timedelta(minutes=1)
    record(database, arrival(move(A, B), secret=old.id, received_at=later))
    with database.reading() as transaction:
        used = [secret.last_used_at for secret in connections.secret_dates(transaction, ["c1"])["c1"]]
    assert used == [None, later]
    assert (new.value, old.value) == (b"new", b"old")


def test_a_delivery_teaches_the_repository_id_once(database: Database) -> None:
    """The first id that is taught stays."""
    connection(database)
    record(database, arrival(move(A, B), teaches="1"))
    record(database, arrival(move(B, C), teaches="2"))
    with database.reading() as transaction:
        assert connections.get(transaction, "c1").repository_id == "1"


def test_pages_follow_one_another(database: Database) -> None:
    """The newest first, and each delivery on exactly one page."""
    connection(database)
    sent = [arrival(move(A, B), id=f"{number:04}") for number in range(5)]
    record(database, *sent)
    with database.reading() as transaction:
        first = deliveries.page(transaction, connection="c1", verdict=None, before=None, limit=3)
        rest = deliveries.page(transaction, connection="c1", verdict=None, before=first[-1].id, limit=3)
    assert [delivery.id for delivery in first + rest] == ["0004", "0003", "0002", "0001", "0000"]


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
    batch: list[Arrival] = []
    for number, one in enumerate(sent):
        batch.append(one)
        if number in cuts:
            verdicts += record(database, *batch)
            batch = []
    if batch:
        verdicts += record(database, *batch)
    assert verdicts.count("accepted") == len(steps)
