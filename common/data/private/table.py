"""`csv:PATH` and `parquet:PATH`: one row for each example, named columns.

label=COL        what is predicted; several, comma-separated, for several values; left out where it is unknown
labels=names     the column holds names of the run's classes; `numbers`: their numbers from 0
categories=…     columns that are encoded one-hot, as in `data.categories`, where the run does not say it
ignore=A,B       columns that are no inputs, where the run does not name the inputs
missing=error    refuses empty cells; mean, median, zero, run (the run's means) fill them in, drop leaves the rows out
scale=…          run (the run's means and scales), local (this client's), none; default: run where the run has them
na=?             further spellings of a missing value, comma-separated; sep=; another separator (`tab` for a tab)

Numbers are numbers; whatever else a column holds must be declared as categories.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data.pool import Array
from nufed.common.data.private.rows import PrivateRows, number_rows, tell_here
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.data.private.task import Column, canonical, declared_columns, parse_categories
from nufed.common.errors import ConfigError, DataError
from nufed.common.examples import TaskInfo

MISSING = ("error", "mean", "median", "drop", "zero", "run")
SCALES = ("none", "local", "run")

_FIX = "correct the file, or declare the column's values with categories=COLUMN:VALUE|VALUE"


def read_table(spec: PrivateSpec, task: TaskInfo, config: DataConfig, *, labelled: bool) -> PrivateRows:
    """Return the rows of a table: inputs float64 [N, *task.input_shape], NaN where a cell is empty.

    Args:
        spec: of kind csv or parquet.
        task: what the run expects.
        config: names the columns and their categories, if the run does.
        labelled: whether there must be labels.

    Raises:
        ConfigError: an option contradicts the run or the file.
        DataError: the file cannot be read, lacks a column, or holds something else than was declared.
    """
    labels = spec.names("label")
    if labelled and not labels:
        raise ConfigError(f"--data {spec.text} names no label. Type ?label=COLUMN behind the path.")
    frame = _READERS[spec.kind](spec)
    columns = _columns(list(frame.columns), labels, spec, config)
    _check_width(columns, task)
    inputs = np.concatenate([_encode(frame[column.name], column) for column in columns], axis=1)
    targets = _targets(frame, labels, spec, task) if labels else None
    rows = PrivateRows(inputs, targets, number_rows(inputs), columns)
    return _without_missing(rows, labels, spec.choice("missing", MISSING, "error"), task)


def _read_csv(spec: PrivateSpec) -> Any:
    import pandas as pd

    options = {
        "dtype": str,
        "sep": {"tab": "\t"}.get(given := spec.options.get("sep", ","), given),
        "na_values": list(spec.names("na")),
        "encoding": "utf-8-sig",
        "skipinitialspace": True,
    }
    if len(str(options["sep"])) != 1:
        raise ConfigError(f"--data: sep={given!r} is refused: expected one character, or tab.")
    with _Reading(spec.path, pd.errors.ParserError, pd.errors.EmptyDataError):
        header = pd.read_csv(spec.path, header=None, nrows=1, keep_default_na=False, **options).iloc[0]
        frame = pd.read_csv(spec.path, **options)
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(f"expected as many fields in each row of {spec.path} as in its header; correct the file")
    return _named(frame, [str(name) for name in header], spec)


def _read_parquet(spec: PrivateSpec) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(
            "reading parquet needs pyarrow, which is not installed; pip install 'nufed[parquet]', or write the table "
            "as csv"
        ) from error
    with _Reading(spec.path, pa.ArrowException):
        frame = pq.read_table(spec.path).to_pandas().reset_index(drop=True)
    frame = _named(frame, [str(name) for name in frame.columns], spec)
    markers = set(spec.names("na"))
    return frame.mask(frame.isin(markers)) if markers else frame


_READERS: dict[str, Callable[[PrivateSpec], Any]] = {"csv": _read_csv, "parquet": _read_parquet}


class _Reading:
    """Turns what a reader raises into a DataError; a reader's own words may quote the file, so they stay here."""

    def __init__(self, path: Path, *expected: type[Exception]) -> None:
        """Expect the system's refusals, text that is not UTF-8, and `expected`."""
        self._path = path
        self._expected: tuple[type[Exception], ...] = (OSError, UnicodeError, *expected)

    def __enter__(self) -> None:
        """Begin to read."""

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        """Explain what went wrong."""
        if isinstance(error, FileNotFoundError):
            raise DataError(f"expected a table at {self._path}, but there is no such file; check --data") from error
        if isinstance(error, self._expected):
            tell_here("%s: %s", self._path, error)
            raise DataError(
                f"expected a table in {self._path}, but it cannot be read ({type(error).__name__}); this client's own "
                "log says more. Check the file, and sep= of --data"
            ) from error


def _named(frame: Any, header: Sequence[str], spec: PrivateSpec) -> Any:
    names = [name.strip() for name in header]
    if twice := sorted({name for name in names if names.count(name) > 1 or not name}):
        raise DataError(f"expected columns of {spec.path} with names of their own, but got {twice}; rename them")
    return frame.set_axis(names, axis=1)


def _columns(found: Sequence[str], labels: Sequence[str], spec: PrivateSpec, config: DataConfig) -> tuple[Column, ...]:
    """Return the columns that are inputs: those that the run names, or all that are neither label nor ignored."""
    given, ignored = parse_categories(spec.options.get("categories", ""), "--data: categories"), spec.names("ignore")
    if declared := declared_columns(config):
        _check_against_run(declared, given, ignored)
        columns = declared
    else:
        own = parse_categories(config.categories) or given
        columns = tuple(Column(name, own.get(name, ())) for name in found if name not in {*labels, *ignored})
        given = own
    names = {column.name for column in columns}
    wanted = dict.fromkeys([*(column.name for column in columns), *labels, *ignored, *given])
    if missing := [name for name in wanted if name not in found]:
        raise DataError(
            f"expected the columns {', '.join(missing)} in {spec.path}, but it has {', '.join(found)}; rename the "
            "file's columns or correct --data"
        )
    if both := [name for name in labels if name in names] + [name for name in given if name not in names]:
        raise ConfigError(f"--data: the column {both[0]!r} is named as an input and as something else. Correct it.")
    if not columns:
        raise DataError(f"expected columns beside the label in {spec.path}, but there are none; check --data")
    return columns


def _check_against_run(declared: Sequence[Column], given: dict[str, tuple[str, ...]], ignored: Sequence[str]) -> None:
    categories = {column.name: column.categories for column in declared}
    for name, values in given.items():
        if categories.get(name) != values:
            raise ConfigError(
                f"--data: categories of {name!r} contradict the run, whose data.feature-names and data.categories say "
                f"{'|'.join(categories.get(name, ())) or 'that it has none'}. Leave them out."
            )
    if ignored:
        raise ConfigError("--data: ignore= contradicts the run, which names its inputs itself. Leave it out.")


def _check_width(columns: Sequence[Column], task: TaskInfo) -> None:
    width = sum(column.width for column in columns)
    if (width,) != task.input_shape:
        described = ", ".join(f"{column.name} ({column.width})" for column in columns)
        raise DataError(
            f"expected inputs of shape {list(task.input_shape)}, as the run has them, but these columns become "
            f"{width} inputs: {described}; check the columns, categories= and ignore= of --data"
        )


def _encode(series: Any, column: Column) -> Array:
    """Return a column as inputs, float64 [N, width], NaN where a cell is empty."""
    if not column.categories:
        return _as_numbers(series, column.name)[:, None]
    codes, empty = _codes(series, column.categories, f"the categories of column {column.name!r}")
    encoded: Array = np.eye(len(column.categories))[codes]
    encoded[empty] = np.nan
    return encoded


def _as_numbers(series: Any, name: str) -> Array:
    import pandas as pd

    if series.dtype.kind in "mM":
        raise DataError(f"expected numbers in column {name!r}, but it holds {series.dtype}; {_FIX}")
    try:
        numbers: Array = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected numbers in column {name!r}, but it holds something else; {_FIX}") from error
    wrong = (np.isnan(numbers) & ~series.isna().to_numpy()) | np.isinf(numbers)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        tell_here("row %d has %r in column %r", first + 1, series.iloc[first], name)
        raise DataError(
            f"expected finite numbers in column {name!r}, but {int(wrong.sum())} of {len(numbers)} values are none, "
            f"the first in row {first + 1}; {_FIX}, or its spelling of what is missing with na="
        )
    return numbers


def _codes(series: Any, known: Sequence[str], what: str) -> tuple[Array, Array]:
    """Return (index of each value in `known`, 0 where the cell is empty; which cells are empty)."""
    empty = series.isna().to_numpy()
    numbers = {canonical(name): index for index, name in enumerate(known)}
    codes = np.array(
        [0 if gone else numbers.get(canonical(str(value)), -1) for value, gone in zip(series, empty, strict=True)],
        dtype=np.int64,
    )
    if (codes < 0).any():
        first = int(np.flatnonzero(codes < 0)[0])
        tell_here("row %d has %r, which is not in %s", first + 1, series.iloc[first], what)
        raise DataError(
            f"expected {what} ({', '.join(known)}), but {int((codes < 0).sum())} of {len(codes)} values are others, "
            f"the first in row {first + 1}; correct these values, or the declaration"
        )
    return codes, empty


def _targets(frame: Any, labels: Sequence[str], spec: PrivateSpec, task: TaskInfo) -> Array:
    """Return class numbers float64 [N] or values [N, K], NaN where the label is empty."""
    numbered = spec.choice("labels", ("names", "numbers"), "names") == "numbers"
    if task.kind == "regression":
        return np.stack([_as_numbers(frame[label], label) for label in labels], axis=1)
    if len(labels) > 1:
        raise ConfigError(f"--data: expected one label column for classes, got {len(labels)}. Name one.")
    [label] = labels
    known = tuple(map(str, range(task.num_outputs))) if numbered else task.class_names
    codes, empty = _codes(frame[label], known, f"the run's classes in column {label!r}")
    return np.where(empty, np.nan, codes)


def _without_missing(rows: PrivateRows, labels: Sequence[str], policy: str, task: TaskInfo) -> PrivateRows:
    """Return the rows that the policy keeps; labels, where there are any, are all there."""
    empty = np.isnan(rows.inputs)
    counts = {}
    first = 0
    for column in rows.columns:
        counts[column.name] = int(empty[:, first].sum())
        first += column.width
    labels_of_rows = np.zeros((len(rows), 1)) if rows.targets is None else rows.targets.reshape(len(rows), -1)
    unknown: Array = np.asarray(np.isnan(labels_of_rows).any(axis=1))
    if policy == "drop":
        kept = ~(unknown | empty.any(1))
        targets = None if rows.targets is None else rows.targets[kept]
        return _typed(PrivateRows(rows.inputs[kept], targets, rows.numbers[kept], rows.columns), task)
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0]) + 1
        raise DataError(
            f"expected a label in every row, but {int(unknown.sum())} of {len(rows)} rows lack {', '.join(labels)}, "
            f"the first is row {row}; fill them in, or leave these rows out (missing=drop)"
        )
    if policy == "error" and empty.any():
        where = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
        raise DataError(
            f"expected a value in every cell, but of {len(rows)} rows some have none, by column: {where}; fill them "
            f"in, or choose what to do with missing= of --data: {', '.join(MISSING[1:])}"
        )
    return _typed(rows, task)


def _typed(rows: PrivateRows, task: TaskInfo) -> PrivateRows:
    if rows.targets is None or task.kind == "regression":
        return rows
    return PrivateRows(rows.inputs, rows.targets.astype(np.int64), rows.numbers, rows.columns)
