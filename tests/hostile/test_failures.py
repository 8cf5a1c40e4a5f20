"""Which results of the hostile drill are failures."""

import pytest

from tests.hostile import attacks
from tests.hostile.__main__ import Phase, calm, failed_conditions
from tests.hostile.attacks import Attack, Count
from tests.hostile.healthy import Pushes


def phase(attack: Attack, took: list[float], *, lost: list[str] | None = None, memory: float = 100) -> Phase:
    """Return a phase of the drill in which pushes took so long."""
    return Phase(attack=attack, pushes=Pushes(took=took, lost=lost or []), count=Count(), memory=memory)


FIRST = phase(calm, [0.5])
LAST = phase(calm, [0.5], memory=120)


@pytest.mark.parametrize(
    ("between", "last", "expected"),
    [
        (phase(attacks.headers, [0.5, 9.9]), LAST, []),
        (phase(attacks.full_disk, [90]), LAST, []),
        (phase(attacks.headers, [0.5, 10.1]), LAST, ["headers: 1 pushes took up to 10.1 s, of 10 s"]),
        (phase(attacks.bombs, [0.5], lost=["abc: {}"]), LAST, ["bombs: a push was lost: abc: {}"]),
        (phase(attacks.hanging_hosts, []), LAST, ["hanging hosts: no push was planned"]),
        (
            phase(attacks.headers, [0.5], memory=6000),
            phase(calm, [0.5], memory=121),
            ["memory grew from 100 to 121 MiB, 1.21 times"],
        ),
    ],
)
def test_late_and_lost_pushes_and_memory_that_stays_are_failures(
    between: Phase, last: Phase, expected: list[str]
) -> None:
    """But not a late push on a full disk, nor memory that is freed again."""
    assert failed_conditions([FIRST, between, last], within=10) == expected
