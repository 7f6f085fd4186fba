"""Opens csv and parquet files: the names of the columns first, then the cells of those that are wanted, in parts.

Cells are texts that `cells.py` gives a meaning. A parquet file's types are turned into the text that a program would
write into a csv file: True, 3, 0.1, 2026-01-31; a float32 has the shortest text that names it.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nufed.common.data.private.cells import Cells
from nufed.common.data.private.rows import listed, refusal
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.errors import ConfigError, DataError

Part = dict[int, Cells]
"""Position of a column -> its cells, of some rows."""

_ROWS_AT_ONCE = 65_536
_LARGEST_EXPANSION, _ALWAYS_ALLOWED = 1000, 2**28


class TableFile:
    """An open table; holds the columns' names and gives their cells once."""

    def __init__(self, header: Sequence[str], parts: Callable[[Sequence[int]], Iterator[Part]]) -> None:
        """Keep both."""
        self.header = tuple(name.strip() for name in header)
        self.parts = parts


@contextmanager
def open_table(spec: PrivateSpec) -> Iterator[TableFile]:
    """Yield the file that a spec of kind csv or parquet names.

    Raises:
        ConfigError: sep= is no separator.
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
    separator = {"tab": "\t"}.get(given := spec.options.get("sep", ","), given)
    if len(separator) != 1 or separator in '"\r\n ':
        raise ConfigError(f"--data: sep={given!r} is refused: expected one character, or tab.")
    with _explained(spec), spec.path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=separator, skipinitialspace=True, strict=True)
        header = next((line for line in lines if line), None)
        if header is None:
            raise refusal(DataError, "expected a table with a header line, but the file is empty; check --data")
        yield _named(header, lambda wanted: _csv_parts(lines, len(header), wanted), spec)


def _csv_parts(lines: Iterator[list[str]], width: int, wanted: Sequence[int]) -> Iterator[Part]:
    rows = (line for line in lines if line)
    number = 0
    while part := list(itertools.islice(rows, _ROWS_AT_ONCE)):
        for row in part:
            number += 1
            if len(row) != width:
                raise refusal(
                    DataError,
                    "expected as many fields in each row as in the header, but that is not so; correct the file, or "
                    "sep= of --data",
                    "row %d has %d fields, the header %d",
                    number,
                    len(row),
                    width,
                )
        yield {position: [row[position] for row in part] for position in wanted}


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
            rows = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[names[position] for position in wanted]):
                rows += len(batch)
                yield {position: _texts(batch.column(names[position]), position) for position in wanted}
            if rows != num_rows:
                raise refusal(DataError, f"expected {num_rows} rows in a parquet file that says so, but got {rows}")

        yield _named(names, parts, spec)


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


def _named(header: Sequence[str], parts: Callable[[Sequence[int]], Iterator[Part]], spec: PrivateSpec) -> TableFile:
    table = TableFile(header, parts)
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
        hint = ", and sep= of --data" if spec.kind == "csv" else ""
        raise refusal(
            DataError,
            f"expected a {spec.kind} file, but it cannot be read ({type(error).__name__}); this client's own "
            f"log says more. Check the file{hint}",
            "%s: %s",
            spec.path,
            error,
        ) from error
