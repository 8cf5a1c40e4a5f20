"""The result of a benchmark: values next to their yardsticks, as a table and as build/bench.json.

A benchmark measures in rounds, the value and its yardstick in turn, so that both have the same conditions. A
row that cannot be measured says why, and the others remain.
"""

import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

from rich.console import Console
from rich.markup import escape
from rich.table import Table

P = ParamSpec("P")

Progress = Callable[[str], None]

_COLOURS = {True: "green", False: "red", None: "default"}
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Row:
    """A value of each round, and the yardstick of the same round; `aim` bounds their ratio, if given.

    A single number stands for a single round, or for a yardstick that is a constant. A row that was not
    measured has a `reason` and no values.
    """

    name: str
    values: float | Sequence[float]
    yardsticks: float | Sequence[float]
    aim: float | None
    higher_is_better: bool
    reason: str | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for rounds without a counterpart, and for a yardstick that is 0."""
        if self.reason is None and (not self.ratios or 0 in self._both()[1]):
            raise ValueError(f"{self.name}: nothing was measured, or the yardstick is 0")

    @property
    def value(self) -> float:
        """Return the median of the rounds' values."""
        return statistics.median(self._both()[0])

    @property
    def yardstick(self) -> float:
        """Return the median of the rounds' yardsticks."""
        return statistics.median(self._both()[1])

    @property
    def ratios(self) -> list[float]:
        """Return value / yardstick of each round."""
        return [value / (yardstick or 1) for value, yardstick in zip(*self._both(), strict=True)]

    @property
    def ratio(self) -> float:
        """Return the median of the rounds' ratios."""
        return statistics.median(self.ratios)

    @property
    def reached(self) -> bool | None:
        """Return whether the aim is reached; None without an aim, or not measured."""
        if self.aim is None or self.reason is not None:
            return None
        return self.ratio >= self.aim if self.higher_is_better else self.ratio <= self.aim

    def _both(self) -> tuple[Sequence[float], Sequence[float]]:
        values = [self.values] if isinstance(self.values, int | float) else self.values
        if isinstance(self.yardsticks, int | float):
            return values, [self.yardsticks] * len(values)
        return values, self.yardsticks


class Rounds:
    """The rounds of a benchmark: iterate over them, `measure` everything in each, then make the rows.

    There are at most so many rounds, and none begins that would probably exceed the seconds.
    """

    def __init__(self, name: str, progress: Progress, *, most: int, seconds: float) -> None:
        """Show the progress under the name of the benchmark."""
        self._name = name
        self._progress = progress
        self._most = most
        self._seconds = seconds
        self._taken: dict[str, list[Any]] = {}
        self._failed: dict[str, str] = {}

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each round, from 0."""
        began = time.monotonic()
        longest = 0.0
        for number in range(self._most):
            started = time.monotonic()
            if number and started - began + longest > self._seconds:
                return
            self._progress(f"{self._name}: round {number + 1} of {self._most}")
            yield number
            longest = max(longest, time.monotonic() - started)

    def measure(self, what: str, take: Callable[P, Any], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a measurement and keep its result; after it has raised an exception, do not repeat it."""
        if what in self._failed:
            return
        try:
            self._taken.setdefault(what, []).append(take(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whatever it is, the other rows remain
            self._failed[what] = f"{what}: {_reason(error)}"

    def row(
        self,
        name: str,
        what: str,
        yardstick: str | float,
        *,
        aim: float | None,
        higher_is_better: bool,
        of: Callable[[Any], float] = float,
    ) -> Row:
        """Return the row of two measurements, or of one and a constant; `of` takes the number from each."""
        needed = [name for name in (what, yardstick) if isinstance(name, str)]
        for part in needed:
            if part in self._failed:
                return unmeasured(name, self._failed[part], aim=aim, higher_is_better=higher_is_better)
        values, *yardsticks = ([of(result) for result in self._taken[part]] for part in needed)
        beside = yardstick if isinstance(yardstick, int | float) else yardsticks[0]
        return Row(name, values, beside, aim, higher_is_better)


def unmeasured(name: str, reason: str, *, aim: float | None = None, higher_is_better: bool = True) -> Row:
    """Return the row of something that cannot be measured here."""
    return Row(name, (), (), aim, higher_is_better, reason)


def measured(name: str, measure: Callable[P, Sequence[Row]], *args: P.args, **kwargs: P.kwargs) -> list[Row]:
    """Return the rows of a measurement, or, if it raises an exception, one row with the reason."""
    try:
        return list(measure(*args, **kwargs))
    except Exception as error:  # noqa: BLE001 - whatever it is, the other rows remain
        return [unmeasured(name, _reason(error))]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows for machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([_json(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the rows for people."""
    columns = ("what", "value", "yardstick", "ratio", "of the rounds", "aim")
    table = Table(*columns, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    for row in rows:
        sign = "" if row.aim is None else f"{'≥' if row.higher_is_better else '≤'} {row.aim:g}"
        if row.reason is not None:
            name = f"{escape(row.name)}\n[yellow]not measured: {escape(row.reason)}[/yellow]"
            table.add_row(name, "", "", "", "", sign)
            continue
        spread = f"{min(row.ratios):.2f} to {max(row.ratios):.2f}" if len(row.ratios) > 1 else ""
        colour = _COLOURS[row.reached]
        texts = [escape(row.name), f"{row.value:,.1f}", f"{row.yardstick:,.1f}"]
        table.add_row(*texts, f"[{colour}]{row.ratio:.2f}[/{colour}]", spread, sign)
    console.print(table)


def _json(row: Row) -> dict[str, Any]:
    head = {"name": row.name, "aim": row.aim, "higher_is_better": row.higher_is_better}
    if row.reason is not None:
        return {**head, "reason": row.reason}
    return {
        **head,
        "value": round(row.value, 3),
        "yardstick": round(row.yardstick, 3),
        "ratio": round(row.ratio, 3),
        "lowest": round(min(row.ratios), 3),
        "highest": round(max(row.ratios), 3),
        "rounds": len(row.ratios),
        "reached": row.reached,
    }


def _reason(error: Exception) -> str:
    """Return what happened in one line; the traceback goes to the standard error output."""
    traceback.print_exception(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_MAX_REASON] if text else type(error).__name__
