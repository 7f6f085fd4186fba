"""Which columns of a table are inputs: those that the run names, or all that are nothing else; and their encoding."""

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.data.pool import Array
from nufed.common.data.private.missing import Missing, check_columns
from nufed.common.data.private.rows import listed, refusal, shown_names
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.data.private.task import Column, declared_columns, parse_categories, value_slices
from nufed.common.errors import LISTED, ConfigError, DataError
from nufed.common.examples import TaskInfo


def composed(name: str) -> str:
    """Return a column's name with composed characters, whichever way the system that wrote it had them."""
    return unicodedata.normalize("NFC", name)


def position_of(header: Sequence[str]) -> dict[str, int]:
    """Return name -> position, of composed names."""
    return {composed(name): position for position, name in enumerate(header)}


def input_columns(found: Sequence[str], spec: PrivateSpec, config: DataConfig, missing: Missing) -> tuple[Column, ...]:
    """Return the columns that are inputs: those that the run names, or all that no option names as something else.

    Args:
        found: the file's columns.
        spec: names labels, groups and what is ignored.
        config: names the inputs, if the run does.
        missing: names the columns that get an indicator, with indicator=yes.

    Raises:
        ConfigError: the options contradict the run or each other.
        DataError: the file lacks a column.
    """
    given, ignored = parse_categories(spec.options.get("categories", ""), "--data: categories"), spec.names("ignore")
    labels, others = spec.names("label"), [name for key in ("group", "split", "user") for name in spec.names(key)]
    indicated = _indicated(spec, missing)
    run_categories = parse_categories(config.categories)
    if declared := declared_columns(config):
        _check_against_run(declared, given, ignored, indicated)
        columns = declared
    else:
        given = run_categories or given
        columns = tuple(
            Column(name, given.get(name, ()), declared=name in run_categories, indicator=name in indicated)
            for name in found
            if name not in {*labels, *ignored, *others}
        )
    names = {column.name for column in columns}
    own = [*labels, *ignored, *others, *given]
    _check_found(found, [column.name for column in columns if column.declared], own, spec)
    elsewhere = [name for name in (*labels, *spec.names("split")) if name in names]
    if elsewhere or [name for name in given if name not in names]:
        raise refusal(
            ConfigError,
            "--data names a column as an input and as something else (label=, split=, ignore=, categories=). Correct "
            "it.",
            "label=%s split=%s ignore=%s categories=%s",
            listed(labels),
            listed(spec.names("split")),
            listed(ignored),
            listed(list(given)),
        )
    if not columns:
        raise refusal(DataError, "expected columns beside the label, but there are none; check --data")
    check_columns(missing, columns)
    return columns


def encode(values: Array, column: Column) -> Array:
    """Return a column as inputs, float64 [N, width], NaN where a cell is empty; an indicator says 1 there, else 0."""
    empty = np.isnan(values)
    inputs: Array = values[:, None]
    if column.categories:
        inputs = np.eye(len(column.categories))[np.where(empty, 0, values).astype(np.int64)]
        inputs[empty] = np.nan
    return np.column_stack([inputs, empty]) if column.indicator else inputs


def value_positions(columns: Sequence[Column]) -> list[int]:
    """Return the positions of the inputs that hold columns' values, and are no indicators."""
    return [position for part in value_slices(columns) for position in range(part.start, part.stop)]


def check_width(columns: Sequence[Column], task: TaskInfo) -> None:
    """Refuse columns that become another number of inputs than the run expects.

    Raises:
        DataError: with both numbers.
    """
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


def _indicated(spec: PrivateSpec, missing: Missing) -> tuple[str, ...]:
    """Return the columns that indicator=yes gives a further input: those with a policy of their own."""
    if spec.choice("indicator", ("no", "yes"), "no") == "no":
        return ()
    if not missing.own:
        raise ConfigError(
            "--data: indicator=yes gives an input to each column that missing= names, but it names none. Type "
            "missing=POLICY,COLUMN:POLICY."
        )
    return tuple(missing.own)


def _check_found(found: Sequence[str], of_run: Sequence[str], own: Sequence[str], spec: PrivateSpec) -> None:
    """Refuse a file that lacks columns; those that the run names are told, those of --data counted."""
    there = position_of(found)
    missing = [name for name in dict.fromkeys(of_run) if composed(name) not in there]
    lost = [name for name in dict.fromkeys(own) if composed(name) not in there and name not in missing]
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


def _check_against_run(
    declared: Sequence[Column], given: Mapping[str, tuple[str, ...]], ignored: Sequence[str], indicated: Sequence[str]
) -> None:
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
    if indicated and {column.name for column in declared if column.indicator} != set(indicated):
        raise refusal(
            ConfigError,
            "--data: indicator= contradicts the run, which names its inputs itself (data.indicators). Leave it out.",
        )
