"""Ids that cannot be guessed, and ids that sort by time."""

import re
import uuid
from datetime import UTC, datetime, timedelta

from gateway.store.ids import connection_id, delivery_id, delivery_ids_since

MOMENT = datetime(2026, 11, 23, 9, 0, 0, 123_000, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


def test_a_connection_id_is_96_random_bits_in_hex() -> None:
    """It is the only secret in a webhook's URL, and each is unique."""
    made = {connection_id() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch("[0-9a-f]{24}", one) for one in made)


def test_a_delivery_id_is_a_uuid_of_version_7() -> None:
    """Other programs read it as a UUID, with the variant of RFC 9562 and the time it was made."""
    made = [delivery_id(MOMENT) for _ in range(500)]
    parsed = [uuid.UUID(one) for one in made]
    assert [str(one) for one in parsed] == made
    assert {one.version for one in parsed} == {7}
    assert {one.variant for one in parsed} == {uuid.RFC_4122}
    assert {one.int >> 80 for one in parsed} == {int(MOMENT.timestamp() * 1000)}
    # All the rest is random, including the two bits next to the variant.
    assert {one[19] for one in made} == set("89ab")
    for beside in (17, 20):
        assert len({(one[19], one[beside]) for one in made}) > 16
    assert len(set(made)) == 500


def test_delivery_ids_sort_by_their_moment() -> None:
    """Ids made since a time sort after its bound, earlier ones before it."""
    since = delivery_ids_since(MOMENT)
    assert all(
        delivery_id(MOMENT + later) > since for later in (0 * MILLISECOND, MILLISECOND, 9000 * MILLISECOND)
    )
    assert all(delivery_id(MOMENT - earlier) < since for earlier in (MILLISECOND, 9000 * MILLISECOND))
    assert delivery_id(MOMENT).startswith(f"{since}-7")
