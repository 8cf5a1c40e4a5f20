"""Recorded moves of a ref, and the places of reported moves. Pure: no database, no clock."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.store.ref_gaps import Gap

# How many moves get another generation at once, at most.
_MAX_RAISED = 100


@dataclass(slots=True, kw_only=True)
class Recorded:
    """A recorded move. `seq` is the number of its row, None for a move of the present batch."""

    before: str | None
    after: str | None
    generation: int
    delivery: str
    seq: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The place of a reported move. `repeats` is the delivery that reported it before, if any.

    `is_guess` says that the place was assumed, and that the remote should be asked. `recorded` is the move as
    the history keeps it from now on: its generation may still rise.
    """

    generation: int
    repeats: str | None = None
    is_guess: bool = False
    recorded: "Recorded | None" = None


def newest(moves: Iterable[Recorded]) -> Recorded | None:
    """Return the move with the highest generation, if any."""
    return max(moves, key=lambda one: one.generation, default=None)


def moves_between(gap: Gap, following: Gap, known: Mapping[str, Sequence[Recorded]]) -> list[Recorded]:
    """Return the moves between two gaps, the newest first, as far as they are known.

    `known` has recorded moves by their ends. Deletes cannot be looked up.
    """
    moves: list[Recorded] = []
    end, above = following.start, following.low + 1
    while len(moves) < _MAX_RAISED:
        last = newest(one for one in known.get(end or "", ()) if gap.high <= one.generation < above)
        if last is None:
            break
        moves.append(last)
        end, above = last.before, last.generation
    return moves
