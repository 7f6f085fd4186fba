"""Clients in tables: a Hugging Face dataset or a pandas frame with a column that names the client, or a table for each.

Known by what they can do, so that neither package is needed for data of another kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nufed.common.data.array_trees import take_rows
from nufed.common.data.pool import Array
from nufed.common.errors import ConfigError, DataError, nearest_match_hint
from nufed.library.arguments import as_collection

Clients = tuple[dict[str, tuple[Any, ...]], tuple[str, ...]]


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are what; None where it is not said.

    Attributes:
        client: names the client.
        inputs: one column of arrays or images, or several of numbers; None takes all that are nothing else.
        target: the class or the value to predict.
        group: names what goes to one split together; or, for clients without columns, a list by client.
    """

    client: str | None = None
    inputs: str | Sequence[str] | None = None
    target: str | None = None
    group: str | Mapping[Any, Any] | None = None

    @property
    def named(self) -> bool:
        """Return whether any column is named."""
        return (
            self.client is not None or self.inputs is not None or self.target is not None or isinstance(self.group, str)
        )


def is_table(value: Any) -> bool:
    """Return whether a value is a Hugging Face dataset or a pandas frame."""
    if isinstance(getattr(value, "column_names", None), list):
        return True
    return hasattr(value, "columns") and hasattr(value, "groupby")


def clients_of_table(table: Any, columns: Columns) -> Clients:
    """Return the clients that a column names, in the order in which they come, and the names of the classes.

    Raises:
        ConfigError: a column is not named, or there is none of that name.
        DataError: a column cannot be read as numbers.
    """
    if columns.client is None:
        raise ConfigError(
            f"client_column is missing: name the column that says whose example a row is. {_known(table)}"
        )
    names = _client_names(table, _checked(table, columns.client, "client_column"))
    inputs, values = _examples({"": table}, columns)[""]
    targets, class_names = _numbered({"": values}, {"": table}, columns)
    order = list(dict.fromkeys(names))
    rows = _rows(names, order)
    return {name: (take_rows(inputs, rows[name]), targets[""][rows[name]]) for name in order}, class_names


def _client_names(table: Any, column: str) -> list[str]:
    values = list(_values(table, column))
    missing = sum(_is_missing(value) for value in values)
    if missing or not values:
        raise DataError(
            f"expected a client in each row, but of {len(values)} rows {missing} have none in the column {column!r}; "
            "fill them in, or leave those rows out"
        )
    return [str(value) for value in values]


def _is_missing(value: Any) -> bool:
    """Return whether a cell is empty: None, NaN, or what pandas has for them in its own types."""
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def groups_by_client(dataset: Any, columns: Columns) -> dict[str, Any]:
    """Return the group of each example by client; empty where none are named.

    Args:
        dataset: a table of all clients, a dict from client name to whatever its examples are kept in, or a partitioner.
        columns: the column that names groups, or the groups themselves by client.

    Raises:
        ConfigError: there is no such column, or none can be.
        DataError: an example has no group.
    """
    if columns.group is None:
        return {}
    if isinstance(columns.group, Mapping):
        return {str(name): groups for name, groups in columns.group.items()}
    if is_table(dataset):
        groups = _group_names(dataset, columns.group)
        names = _client_names(dataset, str(columns.client))
        rows = _rows(names, list(dict.fromkeys(names)))
        return {name: [groups[row] for row in own] for name, own in rows.items()}
    if isinstance(dataset, Mapping) and all(map(is_table, dataset.values())):
        return {str(name): _group_names(table, columns.group) for name, table in dataset.items()}
    raise ConfigError(
        f"group={columns.group!r} names a column, but the dataset is no table. Give group={{client name: groups}}, one "
        "for each example."
    )


def _group_names(table: Any, column: str) -> list[str]:
    values = list(_values(table, _checked(table, column, "group")))
    if missing := sum(_is_missing(value) for value in values):
        raise DataError(
            f"expected a group in each row, but of {len(values)} rows {missing} have none in the column {column!r}; "
            "fill them in, or leave those rows out"
        )
    return [str(value) for value in values]


def clients_of_partitions(partitioner: Any, columns: Columns) -> Clients:
    """Return a client for each partition of flwr-datasets, by its natural id where it has one.

    Raises:
        ConfigError: a column is not named, or there is none of that name.
        DataError: a column cannot be read as numbers.
    """
    if columns.client is not None:
        raise ConfigError("client_column contradicts a partitioner, which says itself who the clients are.")
    count = int(partitioner.num_partitions)
    tables = {number: partitioner.load_partition(number) for number in range(count)}
    natural = getattr(partitioner, "partition_id_to_natural_id", None) or {}
    return pair_of_table(
        {str(natural.get(number, f"client-{number:03d}")): tables[number] for number in tables}, columns
    )


def pair_of_table(tables: Mapping[str, Any], columns: Columns) -> Clients:
    """Return the clients of one table each, and the names of the classes.

    Raises:
        ConfigError: a column is not named, or there is none of that name.
        DataError: a column cannot be read as numbers.
    """
    pairs = _examples(tables, columns)
    targets, class_names = _numbered({name: pair[1] for name, pair in pairs.items()}, tables, columns)
    return {name: (pair[0], targets[name]) for name, pair in pairs.items()}, class_names


def _examples(tables: Mapping[str, Any], columns: Columns) -> dict[str, tuple[Any, Array]]:
    first = next(iter(tables.values()))
    if columns.target is None:
        raise ConfigError(f"target_column is missing: name the column of classes or values to predict. {_known(first)}")
    _checked(first, columns.target, "target_column")
    inputs = _input_columns(first, columns)
    for name, table in tables.items():
        if missing := [column for column in (*inputs, columns.target) if column not in _names(table)]:
            raise DataError(
                f"expected the columns of client {next(iter(tables))!r} in the table of client {name!r}, but it has no "
                f"{missing[0]!r}; give all tables the same columns"
            )
    return {name: (_inputs(table, inputs), _array(table, columns.target)) for name, table in tables.items()}


def _input_columns(table: Any, columns: Columns) -> list[str]:
    if columns.inputs is None:
        rest = [name for name in _names(table) if name not in (columns.client, columns.target, columns.group)]
        for name in rest:
            _checked(table, name, "input_columns")
        if not rest:
            raise ConfigError(f"input_columns is missing, and no column is left for it. {_known(table)}")
        return rest
    given = [columns.inputs] if isinstance(columns.inputs, str) else as_collection(columns.inputs, "input_columns")
    if not given:
        raise ConfigError(f"input_columns is empty. Name a column, or leave it out. {_known(table)}")
    if taken := [name for name in given if name in (columns.client, columns.target, columns.group)]:
        raise ConfigError(f"input_columns names {taken[0]!r}, which the client, the target or the group is read from.")
    return [_checked(table, name, "input_columns") for name in given]


def _inputs(table: Any, names: Sequence[str]) -> Array | dict[str, Array]:
    """Return one column's arrays [N, ...], several columns of numbers side by side [N, F], or several of arrays."""
    arrays = [_array(table, name) for name in names]
    for name, array in zip(names, arrays, strict=True):
        if array.dtype.kind not in "biuf":
            raise DataError(
                f"expected numbers, arrays or images in the column {name!r}, but it has {_said(array)}; convert it, or "
                "leave it out with input_columns=[...]"
            )
    if len(arrays) > 1 and any(array.ndim != 1 for array in arrays):
        return dict(zip(map(str, names), arrays, strict=True))
    if len(arrays) > 1:
        return np.stack(arrays, axis=1)
    return arrays[0][:, None] if arrays[0].ndim == 1 else arrays[0]


def _numbered(
    targets: Mapping[str, Array], tables: Mapping[str, Any], columns: Columns
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Return the targets with classes as numbers, and the names of the classes: the dataset's, or texts in order."""
    feature = getattr(next(iter(tables.values())), "features", None)
    declared = getattr(feature[columns.target], "names", None) if isinstance(feature, Mapping) else None
    if all(array.dtype.kind in "biuf" for array in targets.values()):
        return dict(targets), tuple(map(str, declared or ()))
    if any(array.dtype.kind != "U" for array in targets.values()):
        raise DataError(
            f"expected numbers or texts in the column {columns.target!r}, but it has neither in some rows; fill in "
            "what is missing"
        )
    names = np.unique(np.concatenate(list(targets.values())))
    return {name: np.searchsorted(names, array) for name, array in targets.items()}, tuple(map(str, names))


def _array(table: Any, name: str) -> Array:
    values = list(_values(table, name))
    arrays = [np.asarray(value) for value in values]
    try:
        array = np.stack(arrays) if arrays else np.zeros(0)
    except ValueError as error:
        raise DataError(
            f"expected values of one shape in the column {name!r}, but {error}; resize or pad them"
        ) from error
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in values):
        return np.array(values, dtype=str)
    return array


def _values(table: Any, name: str) -> Any:
    return table[name]


def _names(table: Any) -> list[str]:
    return list(table.column_names if hasattr(table, "column_names") else table.columns)


def _checked(table: Any, name: str, option: str) -> str:
    if (count := _names(table).count(name)) > 1:
        raise ConfigError(f"{option}={name!r} is the name of {count} columns. Rename all but one.")
    if not count:
        known = [str(each) for each in _names(table)]
        raise ConfigError(f"{option}={name!r} is no column.{nearest_match_hint(str(name), known)}")
    return name


def _known(table: Any) -> str:
    return f"Columns: {', '.join(map(str, _names(table)))}."


def _said(array: Array) -> str:
    return "texts" if array.dtype.kind == "U" else "values that are no numbers"


def _rows(names: Sequence[str], order: Sequence[str]) -> dict[str, Array]:
    """Return the row numbers of each client, in one sweep."""
    number = {name: index for index, name in enumerate(order)}
    owners = np.array([number[name] for name in names], dtype=np.int64)
    sorted_rows = np.argsort(owners, kind="stable")
    parts = np.split(sorted_rows, np.searchsorted(owners[sorted_rows], np.arange(1, len(order))))
    return dict(zip(order, parts, strict=True))
