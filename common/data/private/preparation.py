"""How a table's columns become a model's inputs: what fills an empty cell, what is subtracted, what divides.

Whatever is computed from data is computed on the support split alone, so that nothing of the test split reaches
training or adaptation; it is kept with a personal model, because predictions must be prepared in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nufed.common.data.pool import Array, Rows
from nufed.common.data.private.missing import COMPUTED, Missing
from nufed.common.data.private.rows import refusal, shown_names, told_column
from nufed.common.data.private.task import Column, value_slices
from nufed.common.errors import ConfigError, DataError
from nufed.common.statistics import NOISE

Scaling = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Policy:
    """What is to be done.

    Attributes:
        missing: where cells are empty.
        scale: one of `table.SCALES`.
        run_scaling: (means, scales) of the columns without categories, that the run gives; None if it gives none.
    """

    missing: Missing
    scale: str
    run_scaling: Scaling | None = None

    @property
    def needs_support(self) -> bool:
        """Whether statistics of the client's support split are used."""
        return self.missing.uses(*COMPUTED) or self.scale == "local"


@dataclass(frozen=True)
class Preparation:
    """x ↦ (x with `fill` for NaN - shift) / scale, for each of D inputs; an indicator is 1 where another is NaN.

    Attributes:
        fill: [D]; NaN leaves an empty cell empty.
        shift: [D].
        scale: [D], above 0.
        flags: [D] the position of the input whose emptiness an indicator tells, -1 for an input of its own; or empty,
            without indicators. What stands in an indicator's place before is not looked at.
        indicated: the columns that have an indicator.
        spare: [D] what fills an empty cell of new data where `fill` does not (spare.py); empty if nobody fitted it.
    """

    fill: tuple[float, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    flags: tuple[int, ...] = ()
    indicated: tuple[str, ...] = ()
    spare: tuple[float, ...] = ()

    def apply(self, inputs: Array) -> Array:
        """Return prepared inputs, float64 [N, D]."""
        filled = np.where(np.isnan(inputs), np.array(self.fill), inputs)
        with np.errstate(over="ignore"):  # what becomes infinite is refused by column (common/data/cast.py)
            prepared: Array = (filled - np.array(self.shift)) / np.array(self.scale)
        for position, source in enumerate(self.flags):
            if source >= 0:
                prepared[:, position] = np.isnan(inputs[:, source])
        return prepared

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; null stands for NaN."""
        fill = [None if np.isnan(value) else value for value in self.fill]
        spare = [None if np.isnan(value) else value for value in self.spare]
        values = {"fill": fill, "shift": list(self.shift), "scale": list(self.scale)}
        values |= {"flags": list(self.flags), "indicated": list(self.indicated)} if self.flags else {}
        return {**values, "spare": spare} if spare else values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preparation":
        """Return what `to_json` wrote.

        Raises:
            ValueError: the values are not that.
        """
        try:
            fill = tuple(np.nan if value is None else float(value) for value in values["fill"])
            shift, scale = (tuple(map(float, values[key])) for key in ("shift", "scale"))
            flags, indicated = tuple(map(int, values.get("flags", ()))), tuple(map(str, values.get("indicated", ())))
            spare = tuple(np.nan if value is None else float(value) for value in values.get("spare", ()))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no preparation: {error}") from error
        if not len(fill) == len(shift) == len(scale) or {len(flags), len(spare)} - {0, len(fill)}:
            raise ValueError("no preparation: lengths differ")
        if any(not -1 <= flag < len(fill) for flag in flags):
            raise ValueError("no preparation: an indicator of no input")
        return cls(fill, shift, scale, flags, indicated, spare)


def fit_preparation(columns: Sequence[Column], policy: Policy, inputs: Array, support: Rows) -> Preparation:
    """Return the preparation that a policy makes of a client's support split.

    Args:
        columns: of the table.
        policy: what is to be done.
        inputs: [N, D] with NaN where a cell is empty; not looked at unless `policy.needs_support`.
        support: [M] rows of the support split.

    Raises:
        ConfigError: the policy needs the run's means and scales, and there are none.
        DataError: a column has no value that its mean, median or mode could be computed of.
    """
    if policy.run_scaling is None and (policy.scale == "run" or policy.missing.uses("run")):
        raise refusal(
            ConfigError,
            "--data: scale=run and missing=run need the run's data.feature-means and data.feature-scales, but it has "
            "none. Ask the server's side for them, or choose another.",
        )
    run_values = iter(zip(*policy.run_scaling, strict=True) if policy.run_scaling else ())
    numbers = np.zeros((3, sum(column.width for column in columns)))  # fill, shift, scale
    numbers[2] = 1.0
    gone: list[str] = []
    for index, (column, part) in enumerate(zip(columns, value_slices(columns), strict=True)):
        mean, deviation = (0.0, 1.0) if column.categories else next(run_values, (0.0, 1.0))
        # One column at a time in float64, so that the support split is not held a second time.
        values = inputs[support, part].astype(np.float64) if policy.needs_support else np.zeros((0, column.num_values))
        how = policy.missing.of(column)
        fill = fill_of(column, how, values, mean)
        numbers[0, part] = fill
        if bool(np.isnan(fill).any()) and how in COMPUTED:
            gone.append(told_column(column, index))
        if not column.categories and policy.scale != "none":
            filled = np.where(np.isnan(values), fill, values)
            numbers[1:, part] = np.array([mean, deviation] if policy.scale == "run" else _own_scaling(filled))[:, None]
    if gone:
        raise refusal(
            DataError,
            f"expected a value to compute what is missing of, but no row of the support split has one in "
            f"{shown_names(gone)}; choose missing=zero or missing=run",
        )
    fills, shifts, scales = (tuple(row.tolist()) for row in numbers)
    return Preparation(fills, shifts, scales, *_flags(columns))


def _flags(columns: Sequence[Column]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return where each input's indicator looks, and the columns that have one."""
    indicated = tuple(column.name for column in columns if column.indicator)
    if not indicated:
        return (), ()
    flags = [-1] * sum(column.width for column in columns)
    for column, part in zip(columns, value_slices(columns), strict=True):
        if column.indicator:
            flags[part.stop] = part.start
    return tuple(flags), indicated


def fill_of(column: Column, how: str, values: Array, run_mean: float = 0.0) -> Array:
    """Return what fills an empty cell of a column, [k]; NaN where nothing does.

    Args:
        column: of k inputs, one for each category or one for a number.
        how: one of `missing.MISSING`.
        values: [M, k] of the support split, NaN where a cell is empty.
        run_mean: the run's, 0 of categories.
    """
    if how in ("error", "drop"):
        return np.full(column.num_values, np.nan)
    if how not in COMPUTED:
        return np.full(column.num_values, run_mean if how == "run" else 0.0)
    known = values[~np.isnan(values).any(1)]
    if not len(known):
        return np.full(column.num_values, np.nan)
    if how == "mean":
        return _mean_and_deviation(known)[0]
    if column.categories:
        most_frequent: Array = np.eye(column.num_values)[int(known.sum(0).argmax())]
        return most_frequent
    if how == "median":
        median: Array = np.median(known, axis=0)
        return median
    found, counts = np.unique(known, return_counts=True)
    return found[[int(counts.argmax())]]


def _own_scaling(values: Array) -> tuple[float, float]:
    """Return (shift, scale) of a column [M, 1]; one that never varies is only shifted.

    A column varies if its deviation is more than float32's rounding of its own values: the deviation of 0.1, 0.1, 0.1
    is 1.4e-17 in float64, and dividing by it would make the next patient's 0.2 a 7e15.
    """
    (shift,), (deviation,) = _mean_and_deviation(values)
    return float(shift), float(deviation) if deviation > NOISE * np.abs(values).max() else 1.0


def _mean_and_deviation(values: Array) -> tuple[Array, Array]:
    """Return the mean and the deviation of each column, finite also where the squares of its values are not."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = values.mean(0), values.std(0)
    if np.isfinite(mean).all() and np.isfinite(deviation).all():
        return mean, deviation
    largest = np.maximum(np.abs(values).max(0), 1.0)
    return (values / largest).mean(0) * largest, (values / largest).std(0) * largest
