"""The gaps of a ref's history: where moves are missing. Pure: no database, no clock."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Moves that are missing between `start` and `end`; generations between `low` and `high` are free.

    `start` counts only where `is_start_known`. With `is_planned` the move `high` leads to `end` and was found
    by a reconciliation; without it, nothing has reported how the ref came to `end` yet. `is_guess` says that
    the order of the moves beside the gap was assumed.
    """

    low: int
    high: int
    start: str | None
    is_start_known: bool
    end: str | None
    is_planned: bool
    is_guess: bool
    made_at: int

    @property
    def room(self) -> int:
        """Return how many generations are free. The last is for the move that closes the gap."""
        return self.high - self.low - 1

    @property
    def middle(self) -> int:
        """Return the generation in the middle of the gap."""
        return (self.low + self.high) // 2

    @property
    def is_empty(self) -> bool:
        """Return whether nothing is known to be missing: the gap begins and ends at the same place."""
        return self.begins_at(self.end) and not self.is_planned

    def begins_at(self, value: str | None) -> bool:
        """Return whether the gap is known to begin where the ref was at `value`."""
        return self.is_start_known and self.start == value

    def lacks(self, before: str | None, after: str | None) -> bool:
        """Return whether a move is exactly what the gap lacks."""
        return self.begins_at(before) and self.end == after and (self.is_planned or self.room > 0)

    def may_begin_with(self, before: str | None) -> bool:
        """Return whether a move fits the beginning of the gap, and leaves room for the rest."""
        return self.begins_at(before) and self.room > 1

    def may_end_with(self, after: str | None) -> bool:
        """Return whether a move fits the end of the gap, and leaves room for the rest."""
        return self.end == after and (self.is_planned or self.room > 1)

    def joined_with(self, following: "Gap") -> "Gap":
        """Return the one gap that is left if the moves between two gaps do not belong there."""
        return replace(
            following,
            low=self.low,
            start=self.start,
            is_start_known=self.is_start_known,
            made_at=self.made_at,
        )


def movable_parts(gaps: Sequence[Gap], *, seen: int) -> list[tuple[Gap, Gap]]:
    """Return the gaps around each part of a line that may turn out to be newer than the position.

    `seen` is the generation of the last position that the remote has shown.
    """
    return [
        (gap, following)
        for gap, following in pairwise(gaps)
        if not gap.is_planned and following.is_start_known and (gap.high > seen or following.is_guess)
    ]


def is_order_assumed(gaps: Iterable[Gap], *, shown: int | None, shown_id: str | None) -> bool:
    """Return whether it was assumed that the ref has left the position that the remote showed last."""
    return shown is not None and any(gap.begins_at(shown_id) and gap.high > shown for gap in gaps)


def dump_gaps(gaps: Iterable[Gap]) -> str | None:
    """Return the stored form of gaps; None if there are none."""
    rows = [
        [gap.low, gap.high, gap.start, gap.is_start_known, gap.end, gap.is_planned, gap.is_guess, gap.made_at]
        for gap in gaps
    ]
    return json.dumps(rows, separators=(",", ":")) if rows else None


def load_gaps(stored: str | None) -> list[Gap]:
    """Return gaps from their stored form."""
    names = ("low", "high", "start", "is_start_known", "end", "is_planned", "is_guess", "made_at")
    return [Gap(**dict(zip(names, row, strict=True))) for row in json.loads(stored)] if stored else []
