"""What a cell of a table means: one table of cell -> value, which csv and parquet share.

A reader gives every cell as text, or None where the file itself says that there is nothing (parquet's null and NaN).

| cell | as a number | as a name (a class, a category) |
|---|---|---|
| `3`, `3.0`, `3e+0` | 3 | `3`: what programs write for one whole number is one name |
| `01`, `+1`, `1E0` | 1 | itself: a code, and another name than `1` |
| `900000000000000007` | the nearest float64 | itself, digit by digit |
| `True`, `true`, `TRUE` | 1 | `true`; or `1` where all that is declared is 0 and 1, and the other way round |
| `1,234`, `1_000`, `0x1F`, `٣`, `inf`, `1e999` | refused | itself |
| `3,0`, `1.234,5` with decimal=, thousands=. | 3, 1234.5 | `3`, itself |
| a date, any other text | refused | itself |
| empty, blanks, null | missing | missing |
| what `na=` names | missing | missing; refused if the run declares that name |
| `NA`, `nan`, `None`, `null` … (`MISSING_WORDS`) | missing | missing, unless a class or category is called so |
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np

from nufed.common.data.division import Names
from nufed.common.data.pool import Array
from nufed.common.data.private.dialect import Numerals
from nufed.common.data.private.task import canonical

Cells = Sequence[str | None]

MISSING_WORDS = frozenset(
    ("", "NA", "N/A", "n/a", "#N/A", "#N/A N/A", "#NA", "<NA>", "NaN", "nan", "-NaN", "-nan", "None", "NULL", "null")
) | frozenset(("1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"))
"""Spellings of a missing value, beside those that `na=` adds."""

_PLAIN = Numerals()
_OTHER_THAN_DIGITS = re.compile(r"[^0-9.eE+\-\n]")
_TRUTH = {"true": 1.0, "false": 0.0}
_OTHER_SPELLING = {"true": "1", "false": "0", "1": "true", "0": "false"}


class Markers:
    """The spellings of a missing value that `na=` names; holds them by name and by value."""

    def __init__(self, spellings: Iterable[str] = (), numerals: Numerals = _PLAIN) -> None:
        """Keep them."""
        self.numerals = numerals
        self.names = frozenset(map(canonical, spellings))
        plain = {numerals.plain(name) for name in self.names} - {None}
        self._numbers = {parse_number(name) for name in plain if name is not None} - {None}
        self._exactly = {Decimal(name) for name in plain if name is not None}

    def name(self, text: str) -> bool:
        """Return whether a name is one of them."""
        return bool(self.names) and canonical(text) in self.names

    def number(self, text: str, number: float | None) -> bool:
        """Return whether a number is one of them, in whatever way it is written; long ones digit by digit."""
        if self.name(text):
            return True
        if number not in self._numbers:
            return False
        plain = self.numerals.plain(text)
        return plain is not None and Decimal(plain) in self._exactly


@dataclass
class Refused:
    """Cells that are not what their column should hold; counted while the column is read."""

    count: int = 0
    row: int = 0
    cell: str = ""

    def add(self, row: int, cell: str) -> None:
        """Count a cell; remember the first."""
        if not self.count:
            self.row, self.cell = row, cell
        self.count += 1


def parse_number(text: str, numerals: Numerals = _PLAIN) -> float | None:
    """Return the finite number that a cell's text is, else None.

    Examples:
        >>> parse_number("1e3"), parse_number("TRUE"), parse_number("1,234"), parse_number("1e999")
        (1000.0, 1.0, None, None)
    """
    if (plain := numerals.plain(text)) is not None:
        number = float(plain)
        return number if math.isfinite(number) else None
    return _TRUTH.get(text.lower())


@dataclass
class NumberColumn:
    """Reads cells as numbers, float64, NaN where a value is missing and infinite where it is refused."""

    markers: Markers
    refused: Refused = field(default_factory=Refused)

    def read(self, cells: Cells, rows: Array) -> Array:
        """Return the numbers of a part of the column [M], which stand in the rows of these numbers [M]."""
        if not self.markers.names and self.markers.numerals.are_plain and (numbers := _all_plain(cells)) is not None:
            return numbers
        numbers = np.full(len(cells), np.nan)
        for index, cell in enumerate(cells):
            text = "" if cell is None else cell.strip()
            if text in MISSING_WORDS:
                continue
            number = parse_number(text, self.markers.numerals)
            if self.markers.number(text, number):
                continue
            if number is None:
                self.refused.add(int(rows[index]), text)
                numbers[index] = math.inf
            else:
                numbers[index] = number
        return numbers


def _all_plain(cells: Cells) -> Array | None:
    """Return the numbers of cells that are empty or numbers of digits alone; None as soon as one is anything else."""
    if _OTHER_THAN_DIGITS.search("\n".join(filter(None, cells))):
        return None
    try:
        numbers = np.array([float(cell or "nan") for cell in cells])
    except ValueError:  # digits that are no number
        return None
    return None if bool(np.isinf(numbers).any()) else numbers


@dataclass
class TextColumn:
    """Reads cells as texts that name something, such as a patient; holds the texts, in the order in which they came."""

    markers: Markers
    refused: Refused = field(default_factory=Refused)
    _codes: dict[str, int] = field(default_factory=dict)

    def read(self, cells: Cells, _rows: Array) -> Array:
        """Return the number of the text of each cell of a part of the column, float64 [M], NaN where there is none."""
        codes = np.full(len(cells), np.nan)
        for index, cell in enumerate(cells):
            name = "" if cell is None else canonical(cell)
            if name not in MISSING_WORDS and not self.markers.name(name):
                codes[index] = self._codes.setdefault(name, len(self._codes))
        return codes

    def names(self, codes: Array) -> Names:
        """Return what codes, none of them missing, stand for."""
        return Names(codes.astype(np.int64), tuple(self._codes))


@dataclass
class NameColumn:
    """Reads cells as names that are known, by their position; holds what it refused and whether that was seen."""

    known: Sequence[str]
    markers: Markers
    refused: Refused = field(default_factory=Refused)

    def __post_init__(self) -> None:
        """Number the names; what is answered once is remembered."""
        self._codes = {canonical(name): float(code) for code, name in enumerate(self.known)}
        if set(self._codes) <= set(_OTHER_SPELLING):
            for name, code in list(self._codes.items()):
                self._codes.setdefault(_OTHER_SPELLING[name], code)
        self._answers: dict[str, float | None] = {}

    def read(self, cells: Cells, rows: Array) -> Array:
        """Return the codes of a part of the column, float64 [M], NaN where a value is missing."""
        codes = np.full(len(cells), np.nan)
        for index, cell in enumerate(cells):
            if cell is None:
                continue
            if cell not in self._answers:
                self._answers[cell] = self._answer(cell.strip())
            code = self._answers[cell]
            if code is None:
                self.refused.add(int(rows[index]), cell)
            else:
                codes[index] = code
        return codes

    def _answer(self, text: str) -> float | None:
        """Return the code of a name, NaN for what is missing, None for what is not known."""
        name = canonical(text)
        for spelling in (name, canonical(self.markers.numerals.as_name(text))):
            if spelling in self._codes:
                return self._codes[spelling]
        return math.nan if text in MISSING_WORDS or self.markers.name(name) else None
