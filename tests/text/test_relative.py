"""Relative times."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.text.relative import relative

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
RELATIVE_TIMES = (
    (0, "just now"),
    (59.9, "just now"),
    (60, "1 min ago"),
    (3_599, "59 min ago"),
    (3_600, "1 h ago"),
    (86_399, "23 h ago"),
    (86_400, "1 d ago"),
    (31 * 86_400 - 1, "30 d ago"),
    (31 * 86_400, "2026-10-23"),
    (-5, "just now"),
    (-6, "in a moment"),
    (-59, "in a moment"),
    (-60, "in 1 min"),
    (-7_300, "in 2 h"),
    (-90 * 86_400, "2027-02-21"),
)
"""Seconds before now, and the text."""


@pytest.mark.parametrize(("seconds", "text"), RELATIVE_TIMES)
def test_an_instant_is_a_distance_from_now(seconds: float, text: str) -> None:
    """Rounded down to one unit; far away, it is a date."""
    assert relative(NOW - timedelta(seconds=seconds), now=NOW) == text


def test_a_date_is_in_utc() -> None:
    """Whatever the zone of the instant."""
    instant = datetime(2026, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=2)))
    assert relative(instant, now=NOW) == "2025-12-31"
