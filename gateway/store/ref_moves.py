"""Recorded moves of a ref, and the places of reported moves. Pure: no database, no clock."""

from dataclasses import dataclass


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
