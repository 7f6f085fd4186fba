"""Tables of text that can be read at any width: columns where they fit, else one paragraph for each row."""

import textwrap
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_GAP = "  "
_LEAST_FOR_PROSE = 30
_UNBROKEN = "\u00a0"


def print_table(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], *, right: int = 0) -> None:
    """Print a table as `table_lines` lays it out for the console's width.

    Args:
        console: where to.
        header: names of the columns.
        rows: cells, one for each column.
        right: how many columns at the end are numbers, which stand to the right.
    """
    if console.quiet:
        return
    width = None if console.width == PIPE_WIDTH and not console.is_terminal else console.width
    for line in table_lines(header, rows, width=width, right=right):
        print(line, file=console.file)


PIPE_WIDTH = 160
"""Columns of a console that is no terminal; tables are not bound by it, for nobody wants a folded cell in a file."""


def table_lines(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None, right: int = 0
) -> list[str]:
    """Return the lines of a table, none of them wider than `width` columns as long as its words are not.

    The last column may run over several lines, unless it holds numbers. What does not fit even so becomes one
    paragraph for each row: its first cell; below it the other ones with the names of their columns; then the last one.

    Args:
        header: names of the columns.
        rows: cells, one for each column.
        width: columns of the terminal; None for no limit.
        right: how many columns at the end are numbers, which stand to the right.
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(cell_len(line[index]) for line in lines) for index in range(len(header))]
    fixed = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
    if width is None or fixed + widths[-1] <= width:
        return [_columns(line, widths, right) for line in lines]
    if not right and width - fixed >= _LEAST_FOR_PROSE:
        return [text for line in lines for text in _with_last_folded(line, widths, width - fixed)]
    return [text for row in rows for text in _paragraph(header, row, width, right)]


def fits(table: Table, console: Console, *, spare: int = 0) -> bool:
    """Return whether a console is wide enough for a table whose columns may give up `spare` characters in all."""
    unbounded = console.options.update(max_width=10_000)
    return Measurement.get(console, unbounded, table).maximum - spare <= console.width


def _columns(cells: Sequence[str], widths: Sequence[int], right: int) -> str:
    placed = []
    for index, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - cell_len(cell))
        placed.append(space + cell if index >= len(widths) - right else cell + space)
    return _GAP.join(placed).rstrip()


def _with_last_folded(cells: Sequence[str], widths: Sequence[int], room: int) -> Iterator[str]:
    for number, part in enumerate(_folded(cells[-1], room) or [""]):
        shown = [*cells[:-1], part] if number == 0 else [*("" for _ in cells[:-1]), part]
        yield _columns(shown, widths, 0)


def _paragraph(header: Sequence[str], row: Sequence[str], width: int, right: int) -> Iterator[str]:
    yield from _folded(row[0], width) or [""]
    last = len(row) if right else len(row) - 1
    texts = len(row) - right if right else last
    named = [f"{name} {cell}".strip() for name, cell in zip(header[1:texts], row[1:texts], strict=True) if cell]
    pairs = zip(header[texts:last], row[texts:last], strict=True)
    numbers = [f"{name}: {cell}".replace(" ", _UNBROKEN) for name, cell in pairs]
    for text in ("; ".join(named), ", ".join(numbers), *row[last:]):
        for part in _folded(text, max(width - len(_GAP), 10)):
            yield _GAP + part.replace(_UNBROKEN, " ")


def _folded(text: str, width: int) -> list[str]:
    """Return the lines of a text; names with hyphens stay whole, to be copied."""
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
