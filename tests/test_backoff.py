"""The pauses after failures."""

import pytest

from gateway.backoff import backoff


@pytest.mark.parametrize(("failures", "at_most"), [(0, 1), (1, 2), (3, 8), (20, 900), (5000, 900)])
def test_it_doubles_up_to_the_longest(failures: int, at_most: float) -> None:
    """Also after weeks of failures."""
    for _ in range(20):
        assert at_most * 0.75 <= backoff(failures, first=1, longest=900) <= at_most


def test_many_who_failed_together_do_not_come_again_together() -> None:
    """Not even at the longest pause, where they stay."""
    for failures in (0, 20):
        assert len({backoff(failures, first=1, longest=900) for _ in range(50)}) > 40
