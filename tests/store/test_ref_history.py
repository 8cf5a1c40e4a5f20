"""The place of a reported move in its ref's history: pure rules, without a database."""

from collections.abc import Sequence
from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.ids import delivery_id
from gateway.store.ref_gaps import dump_gaps, load_gaps
from gateway.store.ref_history import RefHistory
from gateway.store.ref_moves import Placement
from providers.normalize import ref_update
from testing.records import NOW, move

IDS = [f"{number:040x}" for number in range(1, 12)]


def report(history: RefHistory, before: str | None, after: str | None) -> Placement:
    """Report one move."""
    return history.report(move(before, after), delivery=delivery_id(NOW), now=NOW)


def learned(value: str | None) -> RefHistory:
    """Return the history of a ref that a first look has found at `value`."""
    history = RefHistory(exists=False)
    history.learn(value)
    return history


@pytest.mark.parametrize("start", [RefHistory(exists=False), learned(IDS[0])], ids=["unknown", "learned"])
@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_moves_in_any_order_end_at_the_last(start: RefHistory, order: Sequence[int]) -> None:
    """Each is new exactly once, and the position is that of the last move."""
    history = RefHistory(exists=start.exists, after=start.after, generation=start.generation)
    history.shown, history.shown_id = start.shown, start.shown_id
    walk = list(pairwise(IDS[:5]))
    placements = [report(history, *walk[number]) for number in order]
    assert [one.repeats for one in placements] == [None] * 4
    assert history.after == IDS[4]
    newest = max((one for one in placements if one.recorded), key=lambda one: one.recorded.generation)  # type: ignore[union-attr]
    assert newest.recorded is not None
    assert newest.recorded.after == IDS[4]
    assert [report(history, *one).repeats is None for one in walk] == [False] * 4


@given(order=st.permutations(range(8)), again=st.lists(st.integers(0, 7), max_size=8))
def test_a_long_walk_in_any_order_with_repetitions(order: Sequence[int], again: Sequence[int]) -> None:
    """A repeated move is recognized, wherever in the walk it is."""
    history = learned(IDS[0])
    walk = list(pairwise(IDS[:9]))
    for count, number in enumerate(order):
        assert report(history, *walk[number]).repeats is None
        seen = [one for one in again if one in order[: count + 1]]
        assert all(report(history, *walk[one]).repeats is not None for one in seen)
    assert history.after == IDS[8]


def test_there_and_back_and_there_again_are_three() -> None:
    """A move from the present position counts, even if it was reported before."""
    history = learned(IDS[0])
    walk = [(IDS[0], IDS[1]), (IDS[1], IDS[0]), (IDS[0], IDS[1])]
    assert [report(history, *one).repeats for one in walk] == [None] * 3
    assert history.after == IDS[1]


def test_what_a_reconciliation_covered_is_planned_unless_it_found_it() -> None:
    """It found X to B: A, which it could not see, still counts; B does not count twice."""
    for order in ((0, 1), (1, 0)):
        history = learned(IDS[0])
        history.find(IDS[2], delivery=delivery_id(NOW), now=NOW)
        walk = [(IDS[0], IDS[1]), (IDS[1], IDS[2])]
        repeats = {number: report(history, *walk[number]).repeats is not None for number in order}
        assert repeats == {0: False, 1: True}
        assert history.after == IDS[2]
        assert history.gaps[1:] == []


def test_a_branch_that_was_deleted_and_made_again_counts_again() -> None:
    """Also if the delete does not contain the branch's position."""
    for before in (IDS[0], None):
        history = learned(IDS[0])
        gone = ref_update(ref="refs/heads/main", before=before, after=None, deleted=True)
        assert gone is not None
        assert history.report(gone, delivery=delivery_id(NOW), now=NOW).repeats is None
        assert history.after is None
        assert report(history, None, IDS[0]).repeats is None
        assert history.after == IDS[0]


def test_gaps_survive_being_stored() -> None:
    """They are restored unchanged."""
    history = learned(IDS[0])
    report(history, IDS[1], IDS[2])
    assert len(history.gaps) == 2
    assert load_gaps(dump_gaps(history.gaps)) == history.gaps
    assert dump_gaps([]) is None


def test_gaps_do_not_grow_without_end() -> None:
    """If webhooks are lost for good, the oldest gaps are closed."""
    history = learned(IDS[0])
    for number in range(200):
        report(history, f"{number + 100:040x}", f"{number + 500:040x}")
    assert len(history.gaps) <= 32
