"""Opens csv and parquet files: the names of the columns first, then the cells of those that are wanted, in parts.

Cells are texts that `cells.py` gives a meaning. A parquet file's types are turned into the text that a program would
write into a csv file: True, 3, 0.1, 2026-01-31; a float32 has the shortest text that names it.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nufed.common.data.pool import Array
from nufed.common.data.private.cells import Cells
from nufed.common.data.private.dialect import Dialect, read_dialect
from nufed.common.data.private.rows import listed, refusal
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.errors import ConfigError, DataError

if TYPE_CHECKING:
    from _csv import Reader

_CELLS_AT_ONCE = 2**18
"""As texts, which take ten times the memory of the numbers that they become."""

_LARGEST_EXPANSION, _ALWAYS_ALLOWED = 1000, 2**28


@dataclass(frozen=True)
class Part:
    """Some rows of a table.

    Attributes:
        numbers: [M] of the rows in the file, from 1.
        cells: position of a column -> its M cells.
        num_bad: rows among them or before them that cannot be read, and were left out.
    """

    numbers: Array
    cells: dict[int, Cells]
    num_bad: int = 0


class TableFile:
    """An open table; holds the columns' names and how it is written, and gives the cells once."""

    def __init__(
        self, header: Sequence[str], parts: Callable[[Sequence[int]], Iterator[Part]], dialect: Dialect
    ) -> None:
        """Keep them."""
        self.header = tuple(name.strip() for name in header)
        self.parts = parts
        self.dialect = dialect


@contextmanager
def open_table(spec: PrivateSpec) -> Iterator[TableFile]:
    """Yield the file that a spec of kind csv or parquet names.

    Raises:
        ConfigError: an option that says how the file is written is refused.
        DataError: the file cannot be read, now or while its parts are taken.
    """
    path = spec.path
    if not path.is_file():
        raise refusal(
            DataError,
            f"expected a {spec.kind} file where --data says, but there is no such file; check --data",
            "there is no file %s",
            path,
        )
    with _OPEN[spec.kind](spec) as table:
        yield table


@contextmanager
def _open_csv(spec: PrivateSpec) -> Iterator[TableFile]:
    dialect = read_dialect(spec)
    with _explained(spec), spec.path.open(encoding=dialect.encoding, newline="") as file:
        for _ in range(dialect.skip):
            file.readline()
        lines = csv.reader(file, delimiter=dialect.separator, skipinitialspace=True, strict=True)
        first = next(_csv_rows(lines, dialect.skip, drops_bad=False), None)
        if first is None:
            raise refusal(
                DataError,
                "expected a table with a header line, but "
                + ("the file has no further line behind those of skip=" if dialect.skip else "the file is empty")
                + "; check --data",
            )
        rows = _csv_rows(lines, dialect.skip, drops_bad=dialect.drops_bad)
        if len(first) > 1:
            rows = filter([""].__ne__, rows)  # lines of blanks alone
        # The byte-order mark of an encoding that does not take it for one.
        first[0] = first[0].removeprefix("\ufeff")
        header = first
        if not dialect.has_header:
            header, rows = [str(number) for number in range(1, len(first) + 1)], itertools.chain([first], rows)
        yield _named(header, lambda wanted: _csv_parts(rows, len(header), wanted, dialect), spec, dialect)


def _csv_rows(lines: "Reader", skipped: int, *, drops_bad: bool) -> Iterator[list[str]]:
    """Give the rows that are not empty; with `drops_bad`, one without fields for each line that cannot be read."""
    done = lines.line_num
    while True:
        try:
            for row in lines:
                done = lines.line_num
                if row:
                    yield row
        except csv.Error as error:
            if not drops_bad:
                raise refusal(
                    DataError,
                    "expected a csv file, but a row cannot be read: it has a quote inside a quoted field, one that is "
                    "not closed, or a field that is too long; correct the file, or sep= of --data, or leave such rows "
                    "out with bad=drop",
                    "%s in what begins in line %d",
                    error,
                    skipped + done + 1,
                ) from error
            yield from itertools.repeat([], lines.line_num - done)
            done = lines.line_num
        else:
            return


def _csv_parts(rows: Iterator[list[str]], width: int, wanted: Sequence[int], dialect: Dialect) -> Iterator[Part]:
    number = 0
    at_once = max(1, _CELLS_AT_ONCE // width)
    while part := list(itertools.islice(rows, at_once)):
        numbers = np.arange(number + 1, number + len(part) + 1)
        number += len(part)
        fits = np.array([len(row) == width for row in part])
        if not fits.all():
            if not dialect.drops_bad:
                first = int(np.flatnonzero(~fits)[0])
                raise refusal(
                    DataError,
                    "expected as many fields in each row as in the header, but that is not so; correct the file, or "
                    "sep= of --data, or leave such rows out with bad=drop",
                    "row %d has %d fields, the header %d",
                    numbers[first],
                    len(part[first]),
                    width,
                )
            part = [row for row in part if len(row) == width]
        cells: dict[int, Cells] = {position: [row[position] for row in part] for position in wanted}
        yield Part(numbers[fits], cells, int((~fits).sum()))


@contextmanager
def _open_parquet(spec: PrivateSpec) -> Iterator[TableFile]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise refusal(
            DataError,
            "reading parquet needs pyarrow, which is not installed; pip install 'nufed[parquet]', or write the table "
            "as csv",
        ) from error
    with _explained(spec), pq.ParquetFile(spec.path) as file:
        names = file.schema_arrow.names
        num_rows = file.metadata.num_rows

        def parts(wanted: Sequence[int]) -> Iterator[Part]:
            _check_expansion(spec.path, 8 * num_rows * len(wanted))
            rows, at_once = 0, max(1, _CELLS_AT_ONCE // max(1, len(wanted)))
            for batch in file.iter_batches(at_once, columns=[names[position] for position in wanted]):
                numbers = np.arange(rows + 1, rows + len(batch) + 1)
                rows += len(batch)
                cells = {position: _texts(batch.column(names[position]), position) for position in wanted}
                yield Part(numbers, cells)
            if rows != num_rows:
                raise refusal(DataError, f"expected {num_rows} rows in a parquet file that says so, but got {rows}")

        yield _named(names, parts, spec, read_dialect(spec))


_OPEN = {"csv": _open_csv, "parquet": _open_parquet}


def _check_expansion(path: Path, num_bytes: int) -> None:
    """Refuse a file that is a small part of what it would become, as one made to fill the memory."""
    size = path.stat().st_size
    if num_bytes > max(_ALWAYS_ALLOWED, _LARGEST_EXPANSION * size):
        raise refusal(
            DataError,
            f"expected a table of about the size of its file, but {size} bytes would become {num_bytes}; write it as "
            "csv if that is right",
        )


def _texts(column: Any, position: int) -> Cells:
    """Return the cells of an Arrow array as a csv file has them; None for null and NaN."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    values: list[Any]
    if types.is_floating(kind):
        # float() of a narrow number would show digits that it does not have.
        numbers = column.to_numpy(zero_copy_only=False)
        values = [None if number != number else str(number) for number in numbers]
    elif types.is_boolean(kind) or types.is_integer(kind):
        values = [None if value is None else str(value) for value in column.to_pylist()]
    elif types.is_decimal(kind):
        values = [None if value is None else format(value, "f") for value in column.to_pylist()]
    elif str(kind) in ("string", "large_string", "string_view", "null"):
        values = column.to_pylist()
    elif types.is_date(kind) or types.is_timestamp(kind) or types.is_time(kind):
        values = [None if text is None else _short_time(text) for text in column.cast(pa.string()).to_pylist()]
    else:
        raise refusal(
            DataError,
            f"expected text, numbers or dates in every column, but column {position + 1} of the file holds something "
            "else; convert it",
            "column %d holds %s",
            position + 1,
            kind,
        )
    return values


def _short_time(text: str) -> str:
    """Return a time of day without zeros behind the seconds' point."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def _named(
    header: Sequence[str], parts: Callable[[Sequence[int]], Iterator[Part]], spec: PrivateSpec, dialect: Dialect
) -> TableFile:
    table = TableFile(header, parts, dialect)
    names = table.header
    if twice := sorted({name for name in names if names.count(name) > 1 or not name}):
        raise refusal(
            DataError,
            f"expected columns with names of their own, but {len(twice)} names of {len(names)} columns are empty or "
            "stand twice; rename them",
            "columns of %s with the same name or none: %s",
            spec.path,
            listed(twice),
        )
    return table


@contextmanager
def _explained(spec: PrivateSpec) -> Iterator[None]:
    """Turn what a reader raises into a DataError; a reader's own words may quote the file, so they stay here."""
    try:
        yield
    except (DataError, ConfigError):
        raise
    except Exception as error:  # damaged files raise anything
        hint = ", and sep= and encoding= of --data" if spec.kind == "csv" else ""
        raise refusal(
            DataError,
            f"expected a {spec.kind} file, but it cannot be read ({type(error).__name__}); this client's own "
            f"log says more. Check the file{hint}",
            "%s: %s",
            spec.path,
            error,
        ) from error
