"""Tables and times of the command line, on a terminal and elsewhere."""

from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from gateway.cli import output
from gateway.cli.output import clock, exact_times, when
from gateway.cli.tables import rendered

COLUMNS = ["id", "received", "outcome", "result"]
ID = "0199f3a2-7c1e-7a3b-9d2f-3b1c0e5f6a7b"
URL = f"https://git.example/{'a' * 40}"
ROWS = [
    [ID, "3 min ago", "[green]ran[/green]", "main 1a→2b [green]planned[/green]\ndev 3c→4d planned"],
    [ID, "5 d ago", "nothing-matched", f"no trigger matched, {'because ' * 12}of {URL}"],
    [ID, "just now", "waiting", "-"],
]


def lines(width: int | None, rows: list[list[str]] = ROWS) -> list[str]:
    """Return the table as text."""
    return [line.plain for line in rendered(COLUMNS, rows, width=width, console=Console())]


def test_a_wide_table_has_one_row_for_each_record() -> None:
    """The last cell may have several lines."""
    shown = lines(200, ROWS[:1])
    assert shown[0].split() == COLUMNS
    assert shown[1].endswith("ran      main 1a→2b planned")
    assert shown[2].strip() == "dev 3c→4d planned"
    assert shown[2].index("dev") == shown[1].index("main")


@pytest.mark.parametrize("width", [80, 100, 60, 40])
def test_a_narrow_table_fits(width: int) -> None:
    """Ids stay whole, and words too: what does not fit is below the record, behind its column's name."""
    shown = lines(width)
    assert max(map(len, shown)) <= width
    assert sum(line.startswith(ID) for line in shown) == len(ROWS)
    assert [word for line in shown for word in line.split() if word == "because"] == ["because"] * 12
    assert any("main 1a→2b planned" in line for line in shown)
    assert ("outcome: waiting" in " ".join(shown)) == (width <= 60)


def test_elsewhere_a_record_is_one_line() -> None:
    """With full values."""
    shown = lines(None)
    assert len(shown) == 1 + len(ROWS)
    assert shown[1].endswith("main 1a→2b planned; dev 3c→4d planned")
    assert shown[2].endswith(f"of {URL}")


def test_times_are_relative_only_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines that stay on the screen have the time of the clock."""
    at = datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)
    assert (when(at.isoformat()), clock(at.isoformat())) == (
        "2026-01-02T03:04:05.600000Z",
        "2026-01-02T03:04:05.600000Z",
    )
    monkeypatch.setattr(output, "out", Console(force_terminal=True))
    assert when((datetime.now(UTC) - timedelta(minutes=3)).isoformat()) == "3 min ago"
    assert clock(at.isoformat()) == at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    asked = exact_times.set(True)
    try:
        assert when(at.isoformat()) == clock(at.isoformat()) == "2026-01-02T03:04:05Z"
    finally:
        exact_times.reset(asked)
