"""`csv:PATH` and `parquet:PATH`: one row for each example, named columns.

label=COL        what is predicted; several, comma-separated, for several values; left out where it is unknown
labels=names     the column holds names of the run's classes; `numbers`: their numbers from 0
categories=…     columns that are encoded one-hot, as in `data.categories`, where the run does not say it
ignore=A,B       columns that are no inputs, where the run does not name the inputs
group=COL        rows of one group (a patient) all go to one split; several columns name a group together
split=COL        says which split a row goes to: train (or support), validation, test
missing=…        what is done with empty cells, `missing.py`; indicator=yes: columns with a policy of their own get a
                 further input, 1 where the cell was empty
scale=…          run (the run's means and scales), local (this client's), none; default: run where the run has them
na=?             further spellings of a missing value, comma-separated

Numbers are numbers; whatever else a column holds must be declared as categories. What a cell means is in `cells.py`,
how a file is written in `dialect.py`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data.division import joined_names
from nufed.common.data.membership import PARTS
from nufed.common.data.pool import Array
from nufed.common.data.private.cells import Markers, NameColumn, NumberColumn, TextColumn
from nufed.common.data.private.columns import check_width, composed, encode, input_columns, position_of
from nufed.common.data.private.matrix import Matrix
from nufed.common.data.private.missing import MISSING, Missing, read_missing
from nufed.common.data.private.readers import Part, TableFile, open_table
from nufed.common.data.private.rows import (
    PrivateRows,
    listed,
    refusal,
    shown_names,
    tell_here,
    told_column,
)
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.data.private.task import Column, canonical, value_slices
from nufed.common.errors import LISTED, ConfigError, DataError
from nufed.common.examples import TaskInfo

SCALES = ("none", "local", "run")

_FIX = (
    "correct the file (1234.5, not 1,234.5), say how its numbers are written (decimal=, thousands=), declare the "
    "column's values with categories=COLUMN:VALUE|VALUE, leave such rows out with bad=drop"
)
_SPLIT_NAMES = (*PARTS, "train")


def read_table(spec: PrivateSpec, task: TaskInfo, config: DataConfig, *, labelled: bool) -> PrivateRows:
    """Return the rows of a table: inputs [N, *task.input_shape] of floats, NaN where a cell is empty.

    Args:
        spec: of kind csv or parquet; with `user`, of several clients.
        task: what the run expects.
        config: names the columns and their categories, if the run does.
        labelled: whether there must be labels; without, nothing is to be divided, and groups are not looked at.

    Raises:
        ConfigError: an option contradicts the run or the file.
        DataError: the file cannot be read, lacks a column, or holds something else than was declared.
    """
    labels = spec.names("label")
    if labelled and not labels:
        raise refusal(ConfigError, "--data names no label. Type ?label=COLUMN behind the path.")
    if len(spec.names("split")) > 1 or len(spec.names("user")) > 1:
        raise refusal(ConfigError, "--data: expected one column in split= and user=, got several. Name one.")
    missing = read_missing(spec)
    with open_table(spec) as table:
        markers = Markers(spec.names("na"), table.dialect.numerals)
        columns = input_columns(table.header, spec, config, missing)
        check_width(columns, task)
        readers = _Readers(
            [_input_reader(column, told_column(column, index), markers) for index, column in enumerate(columns)],
            _label_readers(labels, spec, task, markers),
            _name_readers(spec, markers) if labelled else {},
        )
        reading = _Reading(readers, columns)
        reading.read(table)
    return _without_missing(_named(reading.rows(task), reading.names(), missing), missing, task)


@dataclass(frozen=True)
class _Reader:
    """How one column is read, and what is said when it holds something else: `told` to the server, the name here."""

    name: str
    cells: NumberColumn | NameColumn | TextColumn
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
    if task.kind in ("segmentation", "tokens"):
        raise refusal(
            ConfigError,
            f"--data names a table, which has no targets for data.task={task.kind}: a class for each position of an "
            "example. Give npz: or python:.",
        )
    if task.kind != "classification":
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


def _name_readers(spec: PrivateSpec, markers: Markers) -> "dict[str, list[_Reader]]":
    """Return the readers of the columns that name the group, the split and the user of a row."""
    readers = {
        kind: [_Reader(name, TextColumn(markers), "", "") for name in spec.names(kind)] for kind in ("group", "user")
    }
    readers["split"] = [
        _Reader(
            name,
            NameColumn(_SPLIT_NAMES, markers),
            f"{', '.join(_SPLIT_NAMES)} in the column that split= names",
            "correct these values",
        )
        for name in spec.names("split")
    ]
    return readers


def _check_markers(names: Sequence[str], markers: Markers, what: str) -> None:
    """Refuse a spelling of what is missing that is also the name of something."""
    if markers.names.intersection(map(canonical, names)):
        raise refusal(ConfigError, f"--data: na= names {what}, which would be lost. Leave that spelling out.")


@dataclass(frozen=True)
class _Readers:
    """Those of the inputs, of the labels, and by what they say, of the columns that name groups, splits and users."""

    inputs: Sequence[_Reader]
    labels: Sequence[_Reader]
    names: Mapping[str, Sequence[_Reader]]

    @property
    def all(self) -> list[_Reader]:
        """Return all of them, in this order."""
        return [*self.inputs, *self.labels, *itertools.chain.from_iterable(self.names.values())]


class _Reading:
    """Reads a table; holds what has been read of it."""

    def __init__(self, readers: _Readers, columns: Sequence[Column]) -> None:
        """Begin with no row."""
        self._readers, self._columns = readers, tuple(columns)
        self._inputs = Matrix(sum(column.width for column in columns))
        self._others: list[Array] = []
        self._numbers: list[Array] = []

    def read(self, table: TableFile) -> None:
        """Read all rows, leaving out those that cannot be read where bad=drop says so.

        Raises:
            DataError: a column holds something else than was declared; the first of them is named.
        """
        positions = [position_of(table.header)[composed(reader.name)] for reader in self._readers.all]
        num_rows = num_short = num_unreadable = 0
        for part in table.parts(sorted(set(positions))):
            unreadable = self._add(part, positions)
            num_rows += len(part.numbers) + part.num_bad
            num_short, num_unreadable = num_short + part.num_bad, num_unreadable + unreadable
        drops = table.dialect.drops_bad
        for reader in self._readers.all:
            refused = reader.cells.refused
            if refused.count and not (drops and isinstance(reader.cells, NumberColumn)):
                raise refusal(
                    DataError,
                    f"expected {reader.expected}, but {refused.count} of {num_rows} values are others; "
                    f"{reader.advice}, or the spelling of what is missing with na=; this client's own log has the "
                    "first",
                    "row %d has %r in column %r",
                    refused.row,
                    refused.cell,
                    reader.name,
                )
        if num_short + num_unreadable:
            _tell_dropped(num_rows, num_short, num_unreadable)

    def rows(self, task: TaskInfo) -> PrivateRows:
        """Return the rows that were read."""
        num_labels = len(self._readers.labels)
        targets: Array | None = self._joined()[:, :num_labels]
        if not num_labels:
            targets = None
        elif task.kind == "classification":
            targets = self._joined()[:, 0]
        numbers = np.concatenate([np.zeros(0, np.int64), *self._numbers])
        return PrivateRows(self._inputs.close(), targets, numbers, self._columns)

    def names(self) -> dict[str, list[tuple[_Reader, Array]]]:
        """Return, of group, user and split, the reader of each column that says it, with its codes [N]."""
        codes = iter(self._joined()[:, len(self._readers.labels) :].T)
        return {kind: [(reader, next(codes)) for reader in readers] for kind, readers in self._readers.names.items()}

    def _joined(self) -> Array:
        """Return the values of labels and names, [N, columns]."""
        width = len(self._readers.all) - len(self._columns)
        self._others = [np.concatenate([np.zeros((0, width)), *self._others])]
        return self._others[0]

    def _add(self, part: Part, positions: Sequence[int]) -> int:
        """Keep the rows of a part that can be read; return how many cannot."""
        values = [
            reader.cells.read(part.cells[position], part.numbers)
            for reader, position in zip(self._readers.all, positions, strict=True)
        ]
        unreadable = np.zeros(len(part.numbers), dtype=bool)
        for one in values:
            unreadable |= np.isinf(one)
        if unreadable.any():
            values = [one[~unreadable] for one in values]
        num_inputs = len(self._columns)
        inputs = [encode(one, column) for one, column in zip(values[:num_inputs], self._columns, strict=True)]
        self._inputs.append(np.concatenate(inputs, axis=1))
        others = values[num_inputs:]
        self._others.append(np.stack(others, axis=1) if others else np.zeros((len(inputs[0]), 0)))
        self._numbers.append(part.numbers[~unreadable])
        return int(unreadable.sum())


def _tell_dropped(num_rows: int, num_short: int, num_unreadable: int) -> None:
    if num_short + num_unreadable == num_rows:
        raise refusal(
            DataError, f"expected rows that can be read, but bad=drop leaves none of {num_rows}; check --data"
        )
    tell_here(
        "bad=drop leaves out %d of %d rows, which cannot be read: %d have another number of fields than the header or "
        "misplaced quotes, %d have something else where a number is declared",
        num_short + num_unreadable,
        num_rows,
        num_short,
        num_unreadable,
    )


def _named(rows: PrivateRows, found: "Mapping[str, Sequence[tuple[_Reader, Array]]]", missing: Missing) -> PrivateRows:
    """Return the rows with their groups, users and splits, which are all said."""
    codes = [one for kind in found.values() for _, one in kind]
    unknown = np.isnan(np.array(codes)).any(0) if codes else np.zeros(len(rows), dtype=bool)
    if unknown.any():
        if missing.default != "drop":
            kinds = [kind for kind, columns in found.items() if any(np.isnan(one).any() for _, one in columns)]
            raise refusal(
                DataError,
                f"expected a value in every cell of the columns that --data names with {'= and '.join(kinds)}=, but "
                f"{int(unknown.sum())} of {len(rows)} rows lack one; fill them in, or leave these rows out "
                "(missing=drop)",
                "the first such row is row %d",
                rows.numbers[np.flatnonzero(unknown)[0]],
            )
        tell_here(
            "missing=drop leaves out %d of %d rows, whose group, user or split is not said",
            int(unknown.sum()),
            len(rows),
        )
    kept = np.flatnonzero(~unknown)
    names = {
        kind: joined_names(
            [reader.cells.names(one[kept]) for reader, one in columns if isinstance(reader.cells, TextColumn)]
        )
        for kind, columns in found.items()
        if kind != "split" and columns
    }
    parts = [one[kept] for _, one in found.get("split", ())]
    rows = rows.take(kept) if unknown.any() else rows
    return replace(
        rows,
        groups=names.get("group"),
        users=names.get("user"),
        # "train" stands behind the other names and is the first of them.
        parts=np.where(parts[0] == len(PARTS), 0, parts[0]).astype(np.int64) if parts else None,
    )


def _without_missing(rows: PrivateRows, missing: Missing, task: TaskInfo) -> PrivateRows:
    """Return the rows that the policies keep; labels, where there are any, are all there."""
    labels = np.zeros(len(rows)) if rows.targets is None else rows.targets
    unknown: Array = np.asarray(np.isnan(labels if labels.ndim == 2 else labels[:, None]).any(axis=1))
    if unknown.any() and missing.default != "drop":
        raise refusal(
            DataError,
            f"expected a label in every row, but {int(unknown.sum())} of {len(rows)} rows lack one; fill them in, or "
            "leave these rows out (missing=drop)",
            "the first row without a label is row %d",
            int(rows.numbers[np.flatnonzero(unknown)[0]]),
        )
    dropped, counts = unknown.copy(), {}
    for index, (column, part) in enumerate(zip(rows.columns, value_slices(rows.columns), strict=True)):
        policy, empty = missing.of(column), np.isnan(rows.inputs[:, part.start])
        if policy == "drop":
            dropped |= empty
        elif policy == "error" and empty.any():
            counts[index] = empty
    _refuse_empty(rows, {index: int((empty & ~dropped).sum()) for index, empty in counts.items()})
    if len(rows) and dropped.all():
        raise refusal(
            DataError,
            f"expected rows without empty cells, but missing=drop leaves none of {len(rows)}; fill some in",
        )
    if dropped.any():
        tell_here("missing=drop leaves out %d of %d rows, which have empty cells", int(dropped.sum()), len(rows))
        rows = rows.take(np.flatnonzero(~dropped))
    if rows.targets is None or task.kind != "classification":
        return rows
    return replace(rows, targets=rows.targets.astype(np.int64))


def _refuse_empty(rows: PrivateRows, counts: Mapping[int, int]) -> None:
    """Refuse empty cells of columns that nothing is to be done with; `counts` are those of some columns."""
    gone = [(rows.columns[index], index, count) for index, count in counts.items() if count]
    if not gone:
        return
    where = ", ".join(f"{told_column(column, index)} ({count})" for column, index, count in gone[:LISTED])
    more = f" and {len(gone) - LISTED} more" if len(gone) > LISTED else ""
    raise refusal(
        DataError,
        f"expected a value in every cell, but of {len(rows)} rows some have none, by column: {where}{more}; fill "
        f"them in, or choose what to do with missing= of --data: {', '.join(MISSING[1:])}",
        "cells are empty in %s",
        listed([column.name for column, _, _ in gone]),
    )
