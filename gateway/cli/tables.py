"""Tables that fit the width of the terminal: what does not fit beside the rest of a record is below it."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

_GAP = 2
_INDENT = 4


def rendered(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None, console: Console
) -> Iterator[Text]:
    """Yield the lines of a table; cells are rich markup.

    Without a width, each record is on one line. Otherwise, the last columns move below the record, as many as
    do not fit beside the first, which stays whole. There they are wrapped between words.
    """
    lines_of = "; " if width is None else "\n"
    cells = [[Text.from_markup(cell.replace("\n", lines_of)) for cell in row] for row in rows]
    widths = [
        max([len(column), *(_width(row[number]) for row in cells)]) for number, column in enumerate(columns)
    ]
    beside = _fitting(widths, width)
    yield _line([Text(column, "bold") for column in columns[:beside]], widths)
    for row in cells:
        yield from _record(row[:beside], widths)
        if width is not None and beside < len(columns):
            yield from _below(columns[beside:], row[beside:], width - _INDENT, console)


def _width(cell: Text) -> int:
    return max((line.cell_len for line in cell.split("\n", allow_blank=True)), default=0)


def _fitting(widths: Sequence[int], width: int | None) -> int:
    """Return how many columns fit: at least one."""
    for count in range(len(widths), 1, -1):
        if width is None or sum(widths[:count]) + _GAP * (count - 1) <= width:
            return count
    return 1


def _record(row: Sequence[Text], widths: Sequence[int]) -> Iterator[Text]:
    """Yield the lines of a record: as many as its highest cell has."""
    lines = [cell.split("\n", allow_blank=True) for cell in row]
    for number in range(max(map(len, lines))):
        yield _line([cell[number] if number < len(cell) else Text() for cell in lines], widths)


def _line(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text()
    for cell, width in zip(cells, widths, strict=False):
        line.append_text(cell)
        line.append(" " * (width - cell.cell_len + _GAP))
    line.rstrip()
    return line


def _below(names: Sequence[str], cells: Sequence[Text], width: int, console: Console) -> Iterator[Text]:
    """Yield what is below a record: each value behind the name of its column, but for the last column."""
    for name, cell in zip(names, cells, strict=True):
        if cell.plain in {"", "-"}:
            continue
        for line in cell.split("\n"):
            labelled = line if name == names[-1] else Text.assemble((f"{name}: ", "dim"), line)
            for part in labelled.wrap(console, width):
                part.rstrip()
                yield Text(" " * _INDENT).append_text(part)
