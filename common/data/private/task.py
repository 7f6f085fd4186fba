"""The task of a private federation (`data.source=private`), as the server's run declares it.

The server holds no example, so it says what one looks like: `data.task`, `data.input-shape` or `data.feature-names`,
`data.class-names` or `data.num-outputs`. Every client checks its own data against that before its first step.
"""

import itertools
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from nufed.common.config import DataConfig
from nufed.common.config.data import TASK_KINDS
from nufed.common.config.lists import check_line, read_names, read_table
from nufed.common.data.declared_numbers import check_scales, read_numbers
from nufed.common.errors import ConfigError
from nufed.common.examples import InputSpec, TaskInfo, TensorSpec
from nufed.common.given import GIVEN
from nufed.common.statistics import StatisticsShape

PRIVATE = "private"
"""The `data.source` of a federation whose clients bring their own data."""

OWN_FILES = ("csv", "parquet", "images")
"""Kinds of files that a simulation may be made of, and whose content the options may describe as a server's do."""

# What programs write for a number: no leading zeros, no plus sign, an exponent as in 1e+16.
_WRITTEN_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:e[+-][0-9]{1,3})?")
_LONGEST_NUMBER = 400

_ARRAYS = ("npz:", "python:", f"{GIVEN}:")
"""Sources whose targets may be for any task, and say so by `data.task`."""

_PRIVATE_ONLY = (
    "input_shape",
    "target_shape",
    "num_outputs",
    "class_names",
    "feature_names",
    "categories",
    "indicators",
    "feature_means",
    "feature_scales",
)


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: as in the file's header.
        categories: its values, one input each (1 where the row has that value, else 0); empty for a number.
        declared: whether the run names it; else its name stands in the client's file alone.
        indicator: whether a further input, the last of the column's, is 1 where the cell is empty, else 0.
    """

    name: str
    categories: tuple[str, ...] = ()
    declared: bool = field(default=False, compare=False)
    indicator: bool = False

    @property
    def num_values(self) -> int:
        """Return the number of inputs that hold the column's value."""
        return len(self.categories) or 1

    @property
    def width(self) -> int:
        """Return the number of inputs that the column becomes."""
        return self.num_values + self.indicator


def value_slices(columns: Sequence[Column]) -> list[slice]:
    """Return where the inputs that hold each column's value stand among those of all; an indicator stands behind."""
    ends = itertools.accumulate(column.width for column in columns)
    firsts = (end - column.width for end, column in zip(ends, columns, strict=True))
    return [slice(first, first + column.num_values) for first, column in zip(firsts, columns, strict=True)]


def declared_task(config: DataConfig) -> TaskInfo:
    """Return the task that the options declare.

    Raises:
        ConfigError: an option is missing, or two contradict each other.
    """
    input_shape, input_spec = _input_form(config)
    num_outputs, names = _outputs(config)
    target_shape = _target_shape(config, input_shape, input_spec)
    return TaskInfo(config.task, input_shape, num_outputs, names, input_spec, target_shape)


def _input_form(config: DataConfig) -> tuple[tuple[int, ...], InputSpec | None]:
    """Return shape and form of an input: `1,28,28`, `16:integer`, or `ids:16:integer;mask:16:boolean`."""
    parts = [part.split(":") for part in config.input_shape.split(";")]
    if len(parts) == 1 and (len(parts[0]) == 1 or parts[0][0][:1].isdigit()):
        plain = config.model_copy(update={"input_shape": parts[0][0]})
        shape = _input_shape(plain)
        kind = parts[0][1] if len(parts[0]) > 1 else "integer" if config.keeps_integers else "float"
        return shape, None if kind == "float" else _tensor_spec(shape, kind)
    if config.feature_names:
        raise ConfigError("data.feature-names contradicts several inputs in data.input-shape. Leave one of them out.")
    forms = {name: _tensor_spec(_sizes(rest[0]), rest[1] if len(rest) > 1 else "float") for name, *rest in parts}
    if len(forms) < len(parts):
        raise ConfigError(f"data.input-shape={config.input_shape!r} names an input twice. Rename one.")
    return (), tuple(sorted(forms.items()))


def _tensor_spec(shape: tuple[int, ...], kind: str) -> TensorSpec:
    return TensorSpec(shape, "boolean" if kind == "boolean" else "integer" if kind == "integer" else "float")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",")) if text else ()


def _target_shape(config: DataConfig, input_shape: tuple[int, ...], spec: InputSpec | None) -> tuple[int, ...]:
    """Return what `data.target-shape` says, or what follows from the input: a mask's size, a sequence's length."""
    if config.target_shape:
        if config.task in TASK_KINDS and config.task not in ("segmentation", "tokens"):
            raise ConfigError(
                f"data.target-shape={config.target_shape!r} is for segmentation, tokens and tasks of one's own, but "
                f"data.task={config.task}. Leave it out."
            )
        return _sizes(config.target_shape)
    if config.task == "segmentation" and len(input_shape) > 1:
        return input_shape[1:]
    if config.task == "tokens":
        shapes = [form.shape for _, form in spec if form.shape] if isinstance(spec, tuple) else [input_shape]
        if shapes and shapes[0]:
            return shapes[0][:1]
    if config.task in ("segmentation", "tokens"):
        raise ConfigError(f"data.task={config.task} needs the shape of a target. Set data.target-shape, e.g. 64,64.")
    return ()


def check_declared(config: DataConfig) -> None:
    """Refuse options of private federations where the source is another, and so would be ignored.

    Raises:
        ConfigError: naming the first of them.
    """
    if config.source == PRIVATE:
        declared_task(config)
        return
    if config.source.partition(":")[0] in OWN_FILES:
        return
    describes_itself = not config.source.startswith(_ARRAYS)
    counts_itself = describes_itself or config.task in ("classification", "regression")
    given = [
        name
        for name in _PRIVATE_ONLY
        if getattr(config, name) and (counts_itself or name not in ("num_outputs", "class_names"))
    ]
    if config.task != "classification" and describes_itself:
        given = ["task", *given]
    if config.scale != "given":
        given = ["scale", *given]
    if given:
        key = f"data.{given[0].replace('_', '-')}"
        raise ConfigError(
            f"{key}={getattr(config, given[0])!r} describes private data, but data.source={config.source!r} describes "
            f"itself. Set data.source=private, or leave {key} out."
        )


def declared_columns(config: DataConfig) -> tuple[Column, ...]:
    """Return the columns of `data.feature-names` with the categories of `data.categories`; empty if none are named.

    Raises:
        ConfigError: a name stands twice, or categories or an indicator are given for a column that is not named.
    """
    names, categories = split_names(config.feature_names, "data.feature-names"), parse_categories(config.categories)
    if stray := [name for name in categories if names and name not in names]:
        raise ConfigError(
            f"data.categories names the column {stray[0]!r}, which data.feature-names does not list. Correct one."
        )
    indicators = split_names(config.indicators, "data.indicators")
    if stray := [name for name in indicators if name not in names]:
        raise ConfigError(
            f"data.indicators names the column {stray[0]!r}, which data.feature-names does not list. Correct one."
        )
    return tuple(Column(name, categories.get(name, ()), declared=True, indicator=name in indicators) for name in names)


def parse_categories(text: str, option: str = "data.categories") -> dict[str, tuple[str, ...]]:
    """Return column -> categories of `sex:f|m;thal:3|6|7`, or of the same as JSON.

    Raises:
        ConfigError: the text is not of that form, or a name stands twice.
    """
    result: dict[str, tuple[str, ...]] = {}
    try:
        for name, values in read_table(text):
            categories = tuple(map(canonical, values))
            if name in result or len(set(categories)) < len(categories):
                raise ConfigError(f"{option}: the column {name!r} or one of its values stands twice. Remove one.")
            result[name] = categories
    except ValueError as error:
        raise ConfigError(
            f"{option}: expected COLUMN:VALUE|VALUE;…, e.g. sex:f|m, but got {str(error)!r}. Correct it."
        ) from error
    for written in (each for name, values in result.items() for each in (name, *values)):
        check_written(written, option)
    return result


def declared_scaling(config: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return (means, scales) of the columns without categories, in their order; None if the run gives none.

    Raises:
        ConfigError: they are no numbers, not as many as there are such columns, or a scale is not positive.
    """
    if not config.feature_means and not config.feature_scales:
        return None
    means = read_numbers(config.feature_means, "data.feature-means")
    scales = read_numbers(config.feature_scales, "data.feature-scales")
    wanted = sum(not column.categories for column in declared_columns(config))
    if not len(means) == len(scales) == wanted or not wanted:
        raise ConfigError(
            f"expected a mean and a scale for each of the {wanted} columns of data.feature-names without categories, "
            f"but got {len(means)} in data.feature-means and {len(scales)} in data.feature-scales. Give both for each."
        )
    check_scales(means, scales, f"data.feature-scales={config.feature_scales!r}", "column")
    return means, scales


def awaits_statistics(config: DataConfig) -> bool:
    """Return whether the means and scales of a run's columns are still to be made of its clients' statistics."""
    return (
        config.scale == "federated"
        and not config.feature_means
        and any(not column.categories for column in declared_columns(config))
    )


def check_is_scaled(config: DataConfig) -> None:
    """Refuse to begin rounds while the means and scales of a run's columns are still to be had.

    Raises:
        ConfigError: they are not there.
    """
    if awaits_statistics(config):
        raise ConfigError(
            "data.scale=federated needs statistics of the clients before round 1, which `nufed server` and `nufed "
            "simulate` gather. Use one of them, or give data.feature-means and data.feature-scales."
        )


def statistics_shape(config: DataConfig, min_count: int = 0) -> StatisticsShape:
    """Return what clients are asked for, or asked themselves.

    Args:
        config: names the columns.
        min_count: a client's own least count, where it is above the run's.

    Raises:
        ConfigError: the run names no columns.
    """
    columns = declared_columns(config)
    if not columns:
        raise ConfigError(
            "statistics of columns need data.feature-names, which this run does not have. Name the columns; `nufed "
            "draft` writes them."
        )
    classes = split_names(config.class_names, "data.class-names")
    if config.task == "classification" and not classes:
        classes = tuple(map(str, range(config.num_outputs)))
    return StatisticsShape(
        tuple(column.name for column in columns),
        tuple(column.categories for column in columns),
        classes if config.task == "classification" else (),
        max(config.statistics_min_count, min_count),
    )


def canonical(text: str) -> str:
    """Return one spelling for each name: no blanks around it, 3 for 3.0, true for TRUE, composed characters.

    Digits are compared as text: whole numbers of any length stay different, and a code such as 01 is no number.

    Examples:
        >>> canonical(" 3.0 "), canonical("1e+3"), canonical("01"), canonical("True"), canonical("f")
        ('3', '1000', '01', 'true', 'f')
    """
    text = unicodedata.normalize("NFC", text.strip())
    if text.lower() in ("true", "false"):
        return text.lower()
    if len(text) <= _LONGEST_NUMBER and _WRITTEN_NUMBER.fullmatch(text):
        number = Decimal(text)
        if number == number.to_integral_value():
            return str(int(number))
    return text


def check_distinct(names: Sequence[str], option: str) -> None:
    """Refuse names that differ in spelling alone, such as 3 and 3.0: a cell could not say which it means.

    Raises:
        ConfigError: naming the first two.
    """
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(canonical(name), name)) is not name:
            raise ConfigError(
                f"{option} is refused: {other!r} and {name!r} are two spellings of one name. Rename one of them."
            )


def split_names(text: str, option: str) -> tuple[str, ...]:
    """Return the comma-separated names, or those of a JSON list.

    Raises:
        ConfigError: one is empty, stands twice, or does not stand on one line.
    """
    names = read_names(text)
    if "" in names or len(set(names)) < len(names):
        raise ConfigError(f"{option}={text!r} is refused: expected names without repetition. Correct the list.")
    for name in names:
        check_written(name, option)
    return names


def check_written(name: str, option: str) -> None:
    """Refuse a name that cannot stand on one line.

    Raises:
        ConfigError: with the option.
    """
    try:
        check_line(name)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}.") from error


def _input_shape(config: DataConfig) -> tuple[int, ...]:
    shape = _sizes(config.input_shape)
    columns = declared_columns(config)
    declared_scaling(config)
    if config.scale == "federated":
        statistics_shape(config)
    if not shape and not columns:
        raise ConfigError(
            "data.source=private needs the shape of an input, because the server has no data. Set "
            "data.input-shape, e.g. 13 or 1,28,28, or data.feature-names."
        )
    width = sum(column.width for column in columns)
    if columns and shape and math.prod(shape) != width:
        raise ConfigError(
            f"data.input-shape={config.input_shape!r} contradicts data.feature-names, whose columns become {width} "
            "inputs, categories counted. Correct one, or leave data.input-shape out."
        )
    return shape or (width,)


def _outputs(config: DataConfig) -> tuple[int, tuple[str, ...]]:
    names: Sequence[str] = split_names(config.class_names, "data.class-names")
    if config.task in ("regression", "counts"):
        if names:
            raise ConfigError(f"data.class-names contradicts data.task={config.task}. Leave one of them out.")
        return config.num_outputs or 1, ()
    if config.task not in TASK_KINDS:  # of one's own
        return config.num_outputs or len(names) or 1, (*names,)
    check_distinct(names, f"data.class-names={config.class_names!r}")
    if not names and not config.num_outputs:
        raise ConfigError(
            "data.source=private needs the classes, because the server has no data. Set data.class-names, e.g. no,yes, "
            "or data.num-outputs for classes that are numbers from 0."
        )
    if names and config.num_outputs not in (0, len(names)):
        raise ConfigError(
            f"data.num-outputs={config.num_outputs} contradicts data.class-names, which are {len(names)}. "
            "Leave data.num-outputs out."
        )
    return (config.num_outputs or len(names)), (*names,) or tuple(map(str, range(config.num_outputs)))
