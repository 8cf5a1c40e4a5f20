"""How long to leave alone what has failed."""

import random


def backoff(failures: int, *, first: float, longest: float) -> float:
    """Return the seconds to wait after so many failures in a row, before this one.

    `first`, doubled with each failure up to `longest`, and spread a little, so that many who failed together
    do not come again together.
    """
    # A remote may fail for weeks: 2.0 to the power of that is more than a float holds.
    doubled = first * 2.0 ** min(failures, 32)
    return min(longest, doubled) * random.uniform(0.75, 1.0)  # noqa: S311 - no secret
