"""The known position of a ref, and the known moves that led there. Pure: no database, no clock.

Webhooks arrive late, twice, in any order or never, and a replica may show an old position. The known moves of
a ref therefore form one line of rising generations, with a `Gap` where moves are missing. A move that is
reported later fills the gap that it fits; only a move after the known position changes the position.
docs/decisions.md has the model and its limits.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from gateway.store.ids import delivery_ids_since
from gateway.store.ref_gaps import Gap, movable_parts
from gateway.store.ref_moves import Placement, Recorded, moves_between, newest
from providers.model import RefUpdate

IN_FLIGHT = timedelta(hours=1)
"""The longest expected delay of a webhook, and the longest lag of a replica."""

ROOM = 4096
"""How many generations are reserved for the missing moves of a gap."""

# Each half of a gap that is divided has room for at least so many.
_MIN_ROOM = 64

# Older gaps of a ref are closed: their missing moves are no longer expected.
_MAX_GAPS = 32

Sighting = Literal["confirmed", "lagging", "promoted", "moved"]
"""The meaning of the remote's value of a ref: the known position, an earlier position, a reported position
whose place in the line was only assumed, or a move without a webhook."""


@dataclass(slots=True, kw_only=True)
class RefHistory:
    """A ref: its known position `after`, the move that led there, and the gaps below.

    A ref whose position was only learned, from a first look at the remote, has no `delivery`. `shown` is the
    generation of the last position that the remote has shown, and `shown_id` that position. `moves` are the
    recorded moves to the ids of interest. `promoted` are recorded moves that got another generation.
    """

    exists: bool
    before: str | None = None
    after: str | None = None
    generation: int = 0
    delivery: str | None = None
    shown: int | None = None
    shown_id: str | None = None
    gaps: list[Gap] = field(default_factory=list)
    moves: dict[str, list[Recorded]] = field(default_factory=dict)
    repetitions: dict[tuple[str | None, str | None], str] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    promoted: list[Recorded] = field(default_factory=list)
    # What is stored beside the position, as it was read.
    _read: tuple[object, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Remember what was read."""
        self._read = self._beside_position()

    @property
    def is_rewritten(self) -> bool:
        """Return whether more has changed than the position and the move that led there."""
        return self._beside_position() != self._read

    @property
    def is_learned(self) -> bool:
        """Return whether no delivery has reported the known position."""
        return self.exists and self.delivery is None

    def needs_moves(self, move: RefUpdate) -> bool:
        """Return whether a move cannot be placed without the recorded moves: it is not the next move.

        A next move needs none even if the beginning of the ref is unknown.
        """
        if not self.exists:
            return False
        if move.before == self.after and move.before != move.after:
            return any(gap.is_start_known or gap.is_guess for gap in self.gaps)
        return bool(self.gaps) or (
            move.before != self.after and (move.before, move.after) != (self.before, self.after)
        )

    def ids_of_interest(self, move: RefUpdate) -> set[str]:
        """Return the ids whose recorded moves are needed to place a move, as far as they are known yet.

        Moves that follow a late move are found one by one, from the last to the first.
        """
        ids = {move.before, move.after, *(gap.start for gap in self.gaps)}
        ways_on = self._ways_on() if move.before == self.after else []
        if any(gap.end == move.after for gap, _ in ways_on):
            ids |= {part[-1].before for way in ways_on if (part := moves_between(*way, self.moves))}
        return {commit for commit in ids if commit is not None} - self.loaded

    def load(
        self, moves: Iterable[Recorded], ids: Iterable[str], repetitions: Iterable[Recorded] = ()
    ) -> None:
        """Add the recorded moves to these ids, and the recorded repetitions."""
        for move in moves:
            if move.after is not None:
                self.moves.setdefault(move.after, []).append(move)
        for move in repetitions:
            self.repetitions[move.before, move.after] = move.delivery
        self.loaded.update(ids)

    def report(self, move: RefUpdate, *, delivery: str, now: datetime) -> Placement:
        """Place a move that a webhook reports."""
        placement = self._place(move, delivery=delivery, now=now)
        if placement.repeats is not None:
            self.repetitions[move.before, move.after] = placement.repeats
            return placement
        return self._record(move.before, move.after, placement, delivery)

    def report_head(self, after: str | None, *, delivery: str, repeats: str | None) -> Placement:
        """Place the head of a pull request, whose previous position the provider does not report."""
        if after == self.after and self.exists:
            return Placement(generation=self.generation, repeats=self.delivery)
        if repeats is not None:
            return Placement(generation=self.generation, repeats=repeats)
        self._move_to(None, after, self.generation + 1, delivery)
        return self._record(None, after, Placement(generation=self.generation), delivery)

    def find(self, after: str | None, *, delivery: str, now: datetime) -> Placement:
        """Place a move that a reconciliation found: the ref is at `after`, however it got there."""
        before, low = self.after, self.generation
        self._add_gap(low, low + ROOM, before, after, now=now, is_planned=True)
        self._move_to(before, after, low + ROOM, delivery)
        self._see()
        return self._record(before, after, Placement(generation=low + ROOM), delivery)

    def sighting(self, value: str | None, *, now: datetime) -> Sighting:
        """Return the meaning of the remote's `value` of the ref, None if the remote does not have the ref."""
        if value == self.after:
            return "confirmed"
        if self._departure(value) is not None:
            return "promoted"
        if self._lags(value, now=now):
            return "lagging"
        return "promoted" if self._is_reported_since(value) else "moved"

    def was_at(self, value: str) -> bool:
        """Return whether the ref was at a value before, by the stored history."""
        return (
            bool(self.moves.get(value))
            or value in (self.before, self.shown_id)
            or any(value in (gap.start, gap.end) for gap in self.gaps)
        )

    @property
    def is_only_reported(self) -> bool:
        """Return whether a webhook has reported the position, and the remote has shown none yet."""
        return self.delivery is not None and self.shown is None

    def is_awaited(self, *, now: datetime) -> bool:
        """Return whether the first position was reported recently, and the remote has not shown it yet."""
        return self.is_only_reported and (self.delivery or "") >= delivery_ids_since(now - IN_FLIGHT)

    def confirm(self) -> None:
        """Record that the remote shows the known position."""
        self._see()

    def promote(self, value: str | None, *, now: datetime) -> None:
        """Make a known position the present one, because the remote shows it. Nothing is planned again."""
        gap = self._departure(value)
        if gap is not None:
            self._swap(gap, replace(gap, is_start_known=False, start=None))
        low, high = self.generation, self.generation + ROOM
        # A position that a first look learned was never planned: a webhook may still report a push to it.
        is_planned = value is None or bool(self.moves.get(value))
        self._add_gap(low, high, self.after, value, now=now, is_planned=is_planned, is_guess=True)
        self._move_to(self.after, value, high, self.delivery)
        last = newest(self.moves.get(value or "", ()))
        if last is not None:
            self._raise([last], high)
        self._see()

    def learn(self, value: str | None) -> None:
        """Adopt the remote's value: the positions of the first look are not pushes."""
        before = self.after
        self.gaps = []
        # Webhooks that are late may report moves to it.
        self._move_to(before, value, self.generation + ROOM, None)
        self._see()

    def _place(self, move: RefUpdate, *, delivery: str, now: datetime) -> Placement:
        if not self.exists:
            return self._begin(move, delivery=delivery, now=now)
        if move.action == "delete" and move.before is None:
            return self._delete_from_anywhere(delivery, now=now)
        return self._place_move(move.before, move.after, delivery=delivery, now=now)

    def _place_move(
        self, before: str | None, after: str | None, *, delivery: str, now: datetime
    ) -> Placement:
        """Place a move with a known beginning and end."""
        exact = next((gap for gap in self._newest_first() if gap.lacks(before, after)), None)
        if exact is not None:
            return self._close(exact, after)
        recorded = self._find_recorded(before, after)
        is_new = recorded is None or not (self._is_assumed() or before == after)
        if before == self.after and is_new:
            is_ambiguous = before is None or after is None
            past = self._past_departure(before, now=now) if is_ambiguous else None
            if past is not None:
                return replace(self._fill_bottom(past, after), is_guess=True)
            return self._follow(before, after, delivery=delivery, now=now)
        if recorded is not None:
            return Placement(generation=self.generation, repeats=recorded)
        if self.is_learned and after == self.after:
            return self._explain_learned(before, delivery=delivery, now=now)
        return self._place_aside(before, after, delivery=delivery, now=now)

    def _place_aside(
        self, before: str | None, after: str | None, *, delivery: str, now: datetime
    ) -> Placement:
        """Place a move that does not begin at the known position, and was not reported before."""
        for gap in self._newest_first():
            if gap.may_end_with(after):
                return self._fill_top(gap, before)
        for gap in self._newest_first():
            if gap.may_begin_with(before):
                return self._fill_bottom(gap, after)
        recent = int((now - IN_FLIGHT).timestamp())
        for gap in self._newest_first():
            if gap.is_start_known and gap.made_at > recent and gap.room > 2 * _MIN_ROOM:
                return self._fill_inside(gap, before, after)
        low, high = self.generation, self.generation + ROOM
        if self.is_learned:
            self._add_gap(low - ROOM, low, None, self.after, now=now, is_start_known=False)
        self._add_gap(low, high, self.after, before, now=now)
        self._move_to(before, after, high, delivery)
        return Placement(generation=high, is_guess=True)

    def _begin(self, move: RefUpdate, *, delivery: str, now: datetime) -> Placement:
        """Place the first known move of a ref."""
        if move.before is not None:
            self._add_gap(1 - ROOM, 1, None, move.before, now=now, is_start_known=False)
        self._move_to(move.before, move.after, 1, delivery)
        return Placement(generation=1)

    def _delete_from_anywhere(self, delivery: str, *, now: datetime) -> Placement:
        """Place a delete whose previous position the provider does not report."""
        if self.after is None and self.delivery is not None:
            return Placement(generation=self.generation, repeats=self.delivery)
        high = self.generation + ROOM
        # The delete may be older than the position, which the remote then still shows.
        self._add_gap(self.generation, high, self.after, None, now=now, is_planned=True)
        self._move_to(None, None, high, delivery)
        return Placement(generation=high)

    def _follow(self, before: str | None, after: str | None, *, delivery: str, now: datetime) -> Placement:
        """Place a move from the known position."""
        if self.is_learned:
            low = self.generation
            self._add_gap(low - ROOM, low, None, before, now=now, is_start_known=False)
        generation = self.generation + 1
        self._move_to(before, after, generation, delivery)
        # Moves that arrived before this move follow it, up to the end of their part of the line.
        while ways_on := [way for way in self._ways_on() if way[0].end == self.after]:
            gap, following = ways_on[0]
            part = moves_between(gap, following, self.moves)
            if not part or (part[0].generation, part[-1].generation) != (following.low, gap.high):
                # Not all of them were found, so their generations are not free: the next look decides.
                return Placement(generation=generation, is_guess=True)
            self.gaps.remove(gap)
            joined = gap.joined_with(following)
            self._swap(following, *(() if joined.is_empty else (joined,)))
            self._raise(part[::-1], self.generation + 1)
        return Placement(generation=generation)

    def _past_departure(self, value: str | None, *, now: datetime) -> Gap | None:
        """Return the gap, if any, of an older move away from the position whose webhook may be late.

        For a delete or a creation this is the safe assumption: if it is wrong, the next look corrects it.
        """
        recent = int((now - IN_FLIGHT).timestamp())
        gaps = (gap for gap in self._newest_first() if gap.may_begin_with(value) and gap.made_at > recent)
        return next(gaps, None)

    def _ways_on(self) -> list[tuple[Gap, Gap]]:
        return movable_parts(self.gaps, seen=self._seen())

    def _explain_learned(self, before: str | None, *, delivery: str, now: datetime) -> Placement:
        """Place the push to the position that a first look learned."""
        generation = self.generation
        if before is not None:
            self._add_gap(generation - ROOM, generation, None, before, now=now, is_start_known=False)
        self.before, self.delivery = before, delivery
        return Placement(generation=generation)

    def _close(self, gap: Gap, after: str | None) -> Placement:
        """Place the one move that a gap lacked."""
        self.gaps.remove(gap)
        if gap.is_planned:
            return Placement(generation=gap.high, repeats=self._delivery_of(after, gap.high))
        return Placement(generation=gap.middle)

    def _fill_top(self, gap: Gap, before: str | None) -> Placement:
        """Place a move that leads to where a gap ends."""
        generation = gap.high if gap.is_planned else gap.high - 1
        if before is None and not gap.is_start_known:
            self.gaps.remove(gap)
        else:
            self._swap(gap, replace(gap, high=generation, end=before, is_planned=False))
        repeats = self._delivery_of(gap.end, gap.high) if gap.is_planned else None
        return Placement(generation=generation, repeats=repeats)

    def _fill_bottom(self, gap: Gap, after: str | None) -> Placement:
        """Place a move that begins where a gap begins."""
        generation = gap.low + 1
        self._swap(gap, replace(gap, low=generation, start=after))
        return Placement(generation=generation)

    def _fill_inside(self, gap: Gap, before: str | None, after: str | None) -> Placement:
        """Place a move that fits neither end of a gap, and is assumed to belong in it."""
        generation = gap.middle
        lower = replace(gap, high=generation, end=before, is_planned=False)
        upper = replace(gap, low=generation, start=after, is_guess=True)
        self._swap(gap, lower, upper)
        return Placement(generation=generation, is_guess=True)

    def _find_recorded(self, before: str | None, after: str | None) -> str | None:
        """Return the delivery that reported exactly this move."""
        if (before, after) == (self.before, self.after) and self.delivery is not None:
            return self.delivery
        if after is not None:
            known = newest(one for one in self.moves.get(after, ()) if one.before == before)
            if known is not None:
                return known.delivery
            # A reconciliation found it with another beginning, and a webhook reported it later.
            return self.repetitions.get((before, after))
        # Deletes cannot be looked up. A delete from a position that the ref has left is a repetition.
        left = newest(self.moves.get(before or "", ()))
        if before != self.after and left and not any(gap.begins_at(before) for gap in self.gaps):
            return left.delivery
        return None

    def _delivery_of(self, after: str | None, generation: int) -> str:
        known = self.moves.get(after or "", ())
        return next((one.delivery for one in known if one.generation == generation), self.delivery or "")

    def _departure(self, value: str | None) -> Gap | None:
        """Return the newest gap that begins at `value`, if the order of later moves was only assumed."""
        seen = self._seen()
        return next(
            (
                gap
                for gap in self._newest_first()
                if gap.begins_at(value)
                and (gap.high > seen or gap.is_guess or self._may_follow_position(gap, value))
            ),
            None,
        )

    def _may_follow_position(self, gap: Gap, value: str | None) -> bool:
        """Return whether the move before a gap, to `value`, may lead on from the position."""
        known = self.moves.get(value or "", ())
        return any(one.before == self.after and one.generation == gap.low for one in known)

    def _lags(self, value: str | None, *, now: datetime) -> bool:
        """Return whether the ref was at `value` when the remote last showed it, or later."""
        if self.shown == self.generation or not self.exists or self.delivery is None:
            return False
        if self.delivery < delivery_ids_since(now - IN_FLIGHT):
            return False
        seen = self._seen()
        if value == self.shown_id:  # also where the remote has never shown it, and does not show it now
            return True
        return (
            any(one.generation > seen for one in self.moves.get(value or "", ()))
            or any(gap.end == value and gap.high > seen for gap in self.gaps)
            or value in (self.before, None)
        )

    def _is_reported_since(self, value: str | None) -> bool:
        """Return whether a move to `value` was reported after the known position, but placed before it."""
        since = self.delivery
        return since is not None and any(one.delivery > since for one in self.moves.get(value or "", ()))

    def _is_assumed(self) -> bool:
        """Return whether a sighting restored the known position."""
        return any(
            gap.is_guess and gap.high == self.generation and gap.end == self.after for gap in self.gaps
        )

    def _raise(self, moves: Iterable[Recorded], generation: int) -> None:
        """Make recorded moves the newest, in this order; the last is the present one."""
        for place, one in enumerate(moves):
            one.generation = generation + place
            self.promoted.append(one)
            self._move_to(one.before, one.after, one.generation, one.delivery)

    def _record(
        self, before: str | None, after: str | None, placement: Placement, delivery: str
    ) -> Placement:
        recorded = Recorded(before=before, after=after, generation=placement.generation, delivery=delivery)
        if after is not None:
            self.moves.setdefault(after, []).append(recorded)
        return replace(placement, recorded=recorded)

    def _move_to(self, before: str | None, after: str | None, generation: int, delivery: str | None) -> None:
        self.exists = True
        self.before, self.after, self.generation, self.delivery = before, after, generation, delivery

    def _see(self) -> None:
        self.shown, self.shown_id = self.generation, self.after

    def _beside_position(self) -> tuple[object, ...]:
        return self.shown, self.shown_id, *self.gaps

    def _seen(self) -> int:
        return self.shown if self.shown is not None else -(2**31)

    def _newest_first(self) -> Iterable[Gap]:
        return reversed(self.gaps)

    def _swap(self, gap: Gap, *instead: Gap) -> None:
        place = self.gaps.index(gap)
        self.gaps[place : place + 1] = instead
        del self.gaps[:-_MAX_GAPS]

    def _add_gap(
        self,
        low: int,
        high: int,
        start: str | None,
        end: str | None,
        *,
        now: datetime,
        is_start_known: bool = True,
        is_planned: bool = False,
        is_guess: bool = False,
    ) -> None:
        self.gaps.append(
            Gap(
                low=low,
                high=high,
                start=start,
                is_start_known=is_start_known,
                end=end,
                is_planned=is_planned,
                is_guess=is_guess,
                made_at=int(now.timestamp()),
            )
        )
        del self.gaps[:-_MAX_GAPS]
