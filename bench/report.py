"""The result of a benchmark: values next to their yardsticks, as a table and as build/bench.json."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """A value, and that of the yardstick in the same run; `aim` bounds their ratio, if given."""

    name: str
    value: float
    yardstick: float
    aim: float | None
    higher_is_better: bool

    @property
    def ratio(self) -> float:
        """Return value / yardstick."""
        return self.value / self.yardstick

    @property
    def reached(self) -> bool | None:
        """Return whether the aim is reached; None without an aim."""
        if self.aim is None:
            return None
        return self.ratio >= self.aim if self.higher_is_better else self.ratio <= self.aim


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows for machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        {
            "name": row.name,
            "value": round(row.value, 3),
            "yardstick": round(row.yardstick, 3),
            "ratio": round(row.ratio, 3),
            "aim": row.aim,
            "higher_is_better": row.higher_is_better,
        }
        for row in rows
    ]
    path.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the rows for people."""
    table = Table(
        "what", "value", "yardstick", "ratio", "aim", box=None, header_style="bold", padding=(0, 2, 0, 0)
    )
    for column in table.columns[1:]:
        column.justify = "right"
    colours = {True: "green", False: "red", None: "default"}
    for row in rows:
        sign = "" if row.aim is None else f"{'≥' if row.higher_is_better else '≤'} {row.aim:g}"
        colour = colours[row.reached]
        texts = [row.name, f"{row.value:,.1f}", f"{row.yardstick:,.1f}"]
        table.add_row(*texts, f"[{colour}]{row.ratio:.2f}[/{colour}]", sign)
    console.print(table)
