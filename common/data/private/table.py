"""`csv:PATH` and `parquet:PATH`: one row for each example, named columns.

label=COL        what is predicted; several, comma-separated, for several values; left out where it is unknown
labels=names     the column holds names of the run's classes; `numbers`: their numbers from 0
categories=…     columns that are encoded one-hot, as in `data.categories`, where the run does not say it
ignore=A,B       columns that are no inputs, where the run does not name the inputs
missing=error    refuses empty cells; mean, median, zero, run (the run's means) fill them in, drop leaves the rows out
scale=…          run (the run's means and scales), local (this client's), none; default: run where the run has them
na=?             further spellings of a missing value, comma-separated; sep=; another separator (`tab` for a tab)

Numbers are numbers; whatever else a column holds must be declared as categories. What a cell means is in `cells.py`.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data.pool import Array
from nufed.common.data.private.cells import Markers, NameColumn, NumberColumn
from nufed.common.data.private.readers import TableFile, open_table
from nufed.common.data.private.rows import (
    PrivateRows,
    listed,
    number_rows,
    refusal,
    shown_names,
    tell_here,
    told_column,
)
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.data.private.task import Column, canonical, declared_columns, parse_categories
from nufed.common.errors import LISTED, ConfigError, DataError
from nufed.common.examples import TaskInfo

MISSING = ("error", "mean", "median", "drop", "zero", "run")
SCALES = ("none", "local", "run")

_FIX = "correct the file (1234.5, not 1,234.5), or declare the column's values with categories=COLUMN:VALUE|VALUE"


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
        raise refusal(ConfigError, "--data names no label. Type ?label=COLUMN behind the path.")
    policy = spec.choice("missing", MISSING, "error")
    markers = Markers(spec.names("na"))
    with open_table(spec) as table:
        columns = _columns(table.header, labels, spec, config)
        _check_width(columns, task)
        readers = [
            *(_input_reader(column, told_column(column, index), markers) for index, column in enumerate(columns)),
            *_label_readers(labels, spec, task, markers),
        ]
        found = _read(table, readers)
    inputs = np.concatenate(
        [_encode(values, column) for column, values in zip(columns, found[: len(columns)], strict=True)], axis=1
    )
    targets = None
    if labels:
        targets = found[-1] if task.kind == "classification" else np.stack(found[len(columns) :], axis=1)
    return _without_missing(PrivateRows(inputs, targets, number_rows(inputs), columns), policy, task)


@dataclass(frozen=True)
class _Reader:
    """How one column is read, and what is said when it holds something else: `told` to the server, the name here."""

    name: str
    cells: NumberColumn | NameColumn
    expected: str
    advice: str


def _input_reader(column: Column, told: str, markers: Markers) -> _Reader:
    if not column.categories:
        return _Reader(column.name, NumberColumn(markers), f"finite numbers in {told}", _FIX)
    _check_markers(column.categories, markers, f"a category of {told}")
    known = f" ({shown_names(column.categories)})" if column.declared else ""
    advice = "correct these values, or the declaration"
    return _Reader(column.name, NameColumn(column.categories, markers), f"the categories of {told}{known}", advice)


def _label_readers(labels: Sequence[str], spec: PrivateSpec, task: TaskInfo, markers: Markers) -> list[_Reader]:
    numbered = spec.choice("labels", ("names", "numbers"), "names") == "numbers"
    if task.kind == "regression":
        told = (
            [f"label column {index + 1}" for index in range(len(labels))] if len(labels) > 1 else ["the label column"]
        )
        return [
            _Reader(label, NumberColumn(markers), f"finite numbers in {where}", "correct the file")
            for label, where in zip(labels, told, strict=True)
        ]
    if len(labels) > 1:
        raise refusal(ConfigError, f"--data: expected one label column for classes, got {len(labels)}. Name one.")
    if not labels:
        return []
    known = tuple(map(str, range(task.num_outputs))) if numbered else task.class_names
    _check_markers(known, markers, "a class of the run")
    expected = f"the run's classes in the label column ({shown_names(known)})"
    return [_Reader(labels[0], NameColumn(known, markers), expected, "correct these values, or the declaration")]


def _check_markers(names: Sequence[str], markers: Markers, what: str) -> None:
    """Refuse a spelling of what is missing that is also the name of something."""
    if markers.names.intersection(map(canonical, names)):
        raise refusal(ConfigError, f"--data: na= names {what}, which would be lost. Leave that spelling out.")


def _read(table: TableFile, readers: Sequence[_Reader]) -> list[Array]:
    """Return the values of each reader's column, float64 [N].

    Raises:
        DataError: a column holds something else; the first of them is named.
    """
    positions = [_position(table.header)[_composed(reader.name)] for reader in readers]
    parts: list[list[Array]] = [[] for _ in readers]
    num_rows = 0
    for part in table.parts(sorted(set(positions))):
        for values, reader, position in zip(parts, readers, positions, strict=True):
            values.append(reader.cells.read(part[position], num_rows + 1))
        num_rows += len(part[positions[0]])
    for reader in readers:
        if refused := reader.cells.refused.count:
            raise refusal(
                DataError,
                f"expected {reader.expected}, but {refused} of {num_rows} values are others; {reader.advice}, or the "
                "spelling of what is missing with na=; this client's own log has the first",
                "row %d has %r in column %r",
                reader.cells.refused.row,
                reader.cells.refused.cell,
                reader.name,
            )
    return [np.concatenate([np.zeros(0), *values]) for values in parts]


def _encode(values: Array, column: Column) -> Array:
    """Return a column as inputs, float64 [N, width], NaN where a cell is empty."""
    if not column.categories:
        return values[:, None]
    empty = np.isnan(values)
    encoded: Array = np.eye(len(column.categories))[np.where(empty, 0, values).astype(np.int64)]
    encoded[empty] = np.nan
    return encoded


def _composed(name: str) -> str:
    """Return a column's name with composed characters, whichever way the system that wrote it had them."""
    return unicodedata.normalize("NFC", name)


def _position(header: Sequence[str]) -> dict[str, int]:
    return {_composed(name): position for position, name in enumerate(header)}


def _columns(found: Sequence[str], labels: Sequence[str], spec: PrivateSpec, config: DataConfig) -> tuple[Column, ...]:
    """Return the columns that are inputs: those that the run names, or all that are neither label nor ignored."""
    given, ignored = parse_categories(spec.options.get("categories", ""), "--data: categories"), spec.names("ignore")
    run_categories = parse_categories(config.categories)
    if declared := declared_columns(config):
        _check_against_run(declared, given, ignored)
        columns = declared
    else:
        given = run_categories or given
        columns = tuple(
            Column(name, given.get(name, ()), declared=name in run_categories)
            for name in found
            if name not in {*labels, *ignored}
        )
    names = {column.name for column in columns}
    _check_found(found, [column.name for column in columns if column.declared], [*labels, *ignored, *given], spec)
    if [name for name in labels if name in names] + [name for name in given if name not in names]:
        raise refusal(
            ConfigError,
            "--data names a column as an input and as something else (label=, ignore=, categories=). Correct it.",
            "label=%s ignore=%s categories=%s",
            listed(labels),
            listed(ignored),
            listed(list(given)),
        )
    if not columns:
        raise refusal(DataError, "expected columns beside the label, but there are none; check --data")
    return columns


def _check_found(found: Sequence[str], of_run: Sequence[str], own: Sequence[str], spec: PrivateSpec) -> None:
    """Refuse a file that lacks columns; those that the run names are told, those of --data counted."""
    there = _position(found)
    missing = [name for name in dict.fromkeys(of_run) if _composed(name) not in there]
    lost = [name for name in dict.fromkeys(own) if _composed(name) not in there and name not in missing]
    if not missing and not lost:
        return
    told = [f"the run's {shown_names(missing)}"] * bool(missing) + [f"{len(lost)} that --data names"] * bool(lost)
    raise refusal(
        DataError,
        f"expected the columns that the run and --data name, but the file's header lacks {' and '.join(told)}; give "
        "the file a header line, rename its columns or correct --data. This client's own log has both lists",
        "%s lacks %s; it has %s",
        spec.path,
        listed([*missing, *lost]),
        listed(found),
    )


def _check_against_run(declared: Sequence[Column], given: dict[str, tuple[str, ...]], ignored: Sequence[str]) -> None:
    categories = {column.name: column.categories for column in declared}
    for name, values in given.items():
        if categories.get(name) != values:
            raise refusal(
                ConfigError,
                "--data: categories= contradicts the run's data.feature-names and data.categories. Leave it out.",
                "the run says of %r: %s",
                name,
                "|".join(categories.get(name, ())) or "that it has no categories",
            )
    if ignored:
        raise refusal(ConfigError, "--data: ignore= contradicts the run, which names its inputs itself. Leave it out.")


def _check_width(columns: Sequence[Column], task: TaskInfo) -> None:
    width = sum(column.width for column in columns)
    if (width,) != task.input_shape:
        described = ", ".join(f"{column.name!r} ({column.width})" for column in columns[:LISTED])
        raise refusal(
            DataError,
            f"expected inputs of shape {list(task.input_shape)}, as the run has them, but {len(columns)} columns "
            f"become {width} inputs; check the columns, categories= and ignore= of --data",
            "columns and the inputs that each becomes: %s",
            described,
        )


def _without_missing(rows: PrivateRows, policy: str, task: TaskInfo) -> PrivateRows:
    """Return the rows that the policy keeps; labels, where there are any, are all there."""
    empty = np.isnan(rows.inputs)
    labels = np.zeros(len(rows)) if rows.targets is None else rows.targets
    unknown: Array = np.asarray(np.isnan(labels if labels.ndim == 2 else labels[:, None]).any(axis=1))
    if policy == "drop":
        kept = ~(unknown | empty.any(1))
        if len(rows) and not kept.any():
            raise refusal(
                DataError,
                f"expected rows without empty cells, but missing=drop leaves none of {len(rows)}; fill some in",
            )
        if not kept.all():
            tell_here("missing=drop leaves out %d of %d rows, which have empty cells", int((~kept).sum()), len(rows))
        targets = None if rows.targets is None else rows.targets[kept]
        return _typed(PrivateRows(rows.inputs[kept], targets, rows.numbers[kept], rows.columns), task)
    if unknown.any():
        raise refusal(
            DataError,
            f"expected a label in every row, but {int(unknown.sum())} of {len(rows)} rows lack one; fill them in, or "
            "leave these rows out (missing=drop)",
            "the first row without a label is row %d",
            int(np.flatnonzero(unknown)[0]) + 1,
        )
    if policy == "error" and empty.any():
        firsts = np.cumsum([0, *(column.width for column in rows.columns)])
        counts = [int(empty[:, first].sum()) for first in firsts[:-1]]
        gone = [(index, column) for index, column in enumerate(rows.columns) if counts[index]]
        where = ", ".join(f"{told_column(column, index)} ({counts[index]})" for index, column in gone[:LISTED])
        more = f" and {len(gone) - LISTED} more" if len(gone) > LISTED else ""
        raise refusal(
            DataError,
            f"expected a value in every cell, but of {len(rows)} rows some have none, by column: {where}{more}; fill "
            f"them in, or choose what to do with missing= of --data: {', '.join(MISSING[1:])}",
            "cells are empty in %s",
            listed([column.name for _, column in gone]),
        )
    return _typed(rows, task)


def _typed(rows: PrivateRows, task: TaskInfo) -> PrivateRows:
    if rows.targets is None or task.kind == "regression":
        return rows
    return PrivateRows(rows.inputs, rows.targets.astype(np.int64), rows.numbers, rows.columns)
