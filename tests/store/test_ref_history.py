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


def replay(order: Sequence[int]) -> tuple[str | None, list[str | None]]:
    """Report the moves of a walk one by one, each to the stored history; return the position and the line."""
    history, moves = RefHistory(exists=False), []
    for number in order:
        history = stored_again(history)
        moves.append(report(history, IDS[number], IDS[number + 1]).recorded)
    line = {one.generation: one.after for one in moves if one is not None}
    return history.after, [line[generation] for generation in sorted(line)]


def stored_again(history: RefHistory) -> RefHistory:
    """Return a history as the next transaction reads it."""
    return RefHistory(
        exists=history.exists,
        before=history.before,
        after=history.after,
        generation=history.generation,
        delivery=history.delivery,
        shown=history.shown,
        shown_id=history.shown_id,
        gaps=load_gaps(dump_gaps(history.gaps)),
        moves=history.moves,
    )


def test_six_moves_in_every_order_have_generations_of_their_own() -> None:
    """The last has the highest. All are in order if the first, from the known position, arrived first."""
    for order in permutations(range(6)):
        position, line = replay(order)
        assert position == line[-1] == IDS[6], order
        assert sorted(map(str, line)) == IDS[1:7], order
        assert line == IDS[1:7] or order[0] != 0, order


def numbered(history: RefHistory, before: int | None, after: int | None) -> Placement:
    """Report a move between numbered commits."""
    return report(history, *(None if end is None else f"{end:040x}" for end in (before, after)))


def generations(history: RefHistory) -> list[int]:
    """Return the generations of the recorded moves that lead to a commit."""
    return [one.generation for moves in history.moves.values() for one in moves]


def test_moves_whose_gap_is_full_have_generations_of_their_own() -> None:
    """They are assumed to be elsewhere, and the remote is asked; the move that closes the gap has a place."""
    history = learned(IDS[0])
    for number in (1, 10_000, *range(3, 17, 2)):
        numbered(history, number, number + 1)
    [full] = [gap for gap in history.gaps if gap.start == f"{16:040x}"]
    placements = [numbered(history, number, number + 1) for number in range(16, 16 + full.room)]
    assert [one.is_guess for one in placements] == [*[False] * (full.room - 1), True]
    closing = report(history, placements[-2].recorded.after, full.end)  # type: ignore[union-attr]
    assert placements[-2].generation < closing.generation < full.high
    assert len(set(generations(history))) == len(generations(history))


@pytest.mark.parametrize("order", [[*range(0, 40, 2), *range(1, 40, 2)], [0, 39, *range(38, 0, -1)]])
def test_gaps_within_gaps_leave_room_for_all_that_is_missing(order: Sequence[int]) -> None:
    """However many moves arrive out of order within an hour."""
    history = learned(IDS[0])
    for number in order:
        numbered(history, number + 1, number + 2)
    assert len(set(generations(history))) == 40
    assert max(generations(history)) == history.generation
    assert history.after == f"{41:040x}"


def overtaken(*moves: tuple[int | None, int | None]) -> tuple[RefHistory, Placement]:
    """Report moves that were assumed to be older than the position, and the move between them."""
    history = learned(IDS[0])
    for before, after in [(1, 2), (4, 5), *moves]:
        numbered(history, before, after)
    return history, numbered(history, 5, moves[0][0])


@pytest.mark.parametrize(
    "moves",
    [[(6, 7), (7, None), (None, 8)], [(number, number + 1) for number in range(6, 107)]],
    ids=["a delete, which cannot be looked up", "too many at once"],
)
def test_overtaken_moves_that_cannot_be_raised_stay_until_a_look(
    moves: list[tuple[int | None, int | None]],
) -> None:
    """Their generations are not given to other moves, and the look makes the last one the position."""
    history, placement = overtaken(*moves)
    assert (placement.is_guess, history.after) == (True, IDS[5])
    numbered(history, 2, 3)
    numbered(history, 3, 4)
    assert len(set(generations(history))) == len(generations(history))
    end = f"{moves[-1][1]:040x}"
    assert history.sighting(end, now=NOW) == "promoted"
    history.promote(end, now=NOW)
    assert history.after == end
    assert max(generations(history)) == history.generation


@pytest.mark.parametrize(
    "moves",
    [
        [(6, 7), (7, 8), (8, 7), (7, 9)],
        [(None, 6), (6, 7)],
        [(number, number + 1) for number in range(6, 106)],
    ],
    ids=["there and back", "a branch that is made again", "as many as possible"],
)
def test_overtaken_moves_are_raised_in_their_order(moves: list[tuple[int | None, int | None]]) -> None:
    """Of two moves to the same commit, each keeps its place."""
    history, placement = overtaken(*moves)
    assert not placement.is_guess
    assert [(one.before, one.after) for one in history.promoted] == [
        tuple(None if end is None else f"{end:040x}" for end in ends) for ends in moves
    ]
    raised = [one.generation for one in history.promoted]
    assert raised == [placement.generation + 1 + place for place in range(len(moves))]
    assert (history.generation, history.after) == (raised[-1], history.promoted[-1].after)


def test_moves_to_a_position_that_was_learned_later_have_generations_of_their_own() -> None:
    """Also if webhooks had reported the ref before."""
    history = learned(IDS[0])
    numbered(history, 1, 2)
    numbered(history, 2, 3)
    history.learn(IDS[4])
    numbered(history, 4, 5)
    numbered(history, 3, 4)
    assert len(set(generations(history))) == 4
    assert max(generations(history)) == history.generation


def test_moves_before_a_delete_from_anywhere_have_generations_of_their_own() -> None:
    """The delete does not contain the position; a repetition of it does."""
    history = learned(IDS[0])
    gone = ref_update(ref="refs/heads/main", before=None, after=None, deleted=True)
    assert gone is not None
    moves = [numbered(history, 1, 2), history.report(gone, delivery=delivery_id(NOW), now=NOW)]
    assert numbered(history, 3, None).repeats is not None
    moves.append(numbered(history, 2, 3))
    first, deleted, last = (one.generation for one in moves)
    assert first < last < deleted == history.generation


def test_no_gap_remains_once_all_moves_are_known() -> None:
    """Later moves are placed without the recorded ones, and an older position means that a replica lags."""
    for order in permutations(range(1, 6)):
        history = learned(IDS[0])
        for number in (0, *order):
            report(history, IDS[number], IDS[number + 1])
        assert not history.needs_moves(move(IDS[6], IDS[7])), order
        assert history.sighting(IDS[1], now=NOW) == "lagging", order


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
