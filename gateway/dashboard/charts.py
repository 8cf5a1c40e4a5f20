"""Small charts as SVG: bars of parts over time, and spans. Pure: positions in, shapes out.

A chart is stretched to the width of the page, so its labels are text beside it. The units are those of its
view box, which is `HEIGHT` high.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

HEIGHT = 100
_PITCH = 10
_BAR = 8


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar: its kind, which decides the colour, and its place."""

    kind: str
    count: int
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """The bar of one span of time, from the bottom up."""

    start: datetime
    x: int
    parts: Sequence[Part]

    @property
    def total(self) -> int:
        """The sum of its parts."""
        return sum(part.count for part in self.parts)


@dataclass(frozen=True, slots=True)
class StackedBars:
    """Bars over time. `top` is the value at the upper edge, `totals` the sum of each kind that occurs."""

    bars: Sequence[Bar]
    top: int
    totals: Mapping[str, int]

    bar_width = _BAR
    height = HEIGHT

    @property
    def width(self) -> int:
        """The width of the view box."""
        return _PITCH * len(self.bars)

    @property
    def total(self) -> int:
        """The sum of all."""
        return sum(self.totals.values())


@dataclass(frozen=True, slots=True)
class SpanBar:
    """A duration: its median and its 95th percentile, both also as a share of the longest, in percent."""

    name: str
    count: int
    median: timedelta
    p95: timedelta
    median_share: float
    p95_share: float


def span_bars(measured: Sequence[tuple[str, int, float, float]]) -> list[SpanBar]:
    """Return a bar for each name with a count, a median and a 95th percentile in seconds."""
    longest = max((p95 for _, _, _, p95 in measured), default=0) or 1
    return [
        SpanBar(
            name,
            count,
            timedelta(seconds=median),
            timedelta(seconds=p95),
            round(100 * median / longest, 2),
            round(100 * p95 / longest, 2),
        )
        for name, count, median, p95 in measured
    ]


def stacked_bars(spans: Sequence[tuple[datetime, Mapping[str, int]]], kinds: Sequence[str]) -> StackedBars:
    """Stack the counts of each span of time in the order of the kinds, the first at the bottom."""
    top = _round_up(max((sum(counts.values()) for _, counts in spans), default=0))
    bars = [
        Bar(start, _PITCH * number + (_PITCH - _BAR) // 2, _parts(counts, kinds, top))
        for number, (start, counts) in enumerate(spans)
    ]
    sums = {kind: sum(counts.get(kind, 0) for _, counts in spans) for kind in kinds}
    return StackedBars(bars, top, {kind: count for kind, count in sums.items() if count})


def _parts(counts: Mapping[str, int], kinds: Sequence[str], top: int) -> list[Part]:
    parts: list[Part] = []
    bottom = float(HEIGHT)
    for kind in kinds:
        if count := counts.get(kind, 0):
            height = HEIGHT * count / top
            bottom -= height
            parts.append(Part(kind, count, round(bottom, 2), round(height, 2)))
    return parts


def _round_up(value: int) -> int:
    """Return the next value that reads well on an axis: 1, 2, 5, 10, 20, 50 and so on."""
    size = 1
    while True:
        for step in (1, 2, 5):
            if step * size >= value:
                return step * size
        size *= 10
