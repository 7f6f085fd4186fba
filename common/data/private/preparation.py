"""How a table's columns become a model's inputs: what fills an empty cell, what is subtracted, what divides.

Whatever is computed from data is computed on the support split alone, so that nothing of the test split reaches
training or adaptation; it is kept with a personal model, because predictions must be prepared in the same way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nufed.common.data.pool import Array
from nufed.common.data.private.rows import refusal, shown_names, told_column
from nufed.common.data.private.task import NOISE, Column
from nufed.common.errors import ConfigError, DataError

Scaling = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Policy:
    """What is to be done.

    Attributes:
        missing: one of `table.MISSING`.
        scale: one of `table.SCALES`.
        run_scaling: (means, scales) of the columns without categories, that the run gives; None if it gives none.
    """

    missing: str
    scale: str
    run_scaling: Scaling | None = None

    @property
    def needs_support(self) -> bool:
        """Whether statistics of the client's support split are used."""
        return self.missing in ("mean", "median") or self.scale == "local"


@dataclass(frozen=True)
class Preparation:
    """x ↦ (x with `fill` for NaN - shift) / scale, for each of D inputs.

    Attributes:
        fill: [D]; NaN leaves an empty cell empty.
        shift: [D].
        scale: [D], above 0.
    """

    fill: tuple[float, ...]
    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def apply(self, inputs: Array) -> Array:
        """Return prepared inputs, float64 [N, D]."""
        filled = np.where(np.isnan(inputs), np.array(self.fill), inputs)
        with np.errstate(over="ignore"):  # what becomes infinite is refused by column (common/data/cast.py)
            prepared: Array = (filled - np.array(self.shift)) / np.array(self.scale)
        return prepared

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; null stands for NaN."""
        fill = [None if np.isnan(value) else value for value in self.fill]
        return {"fill": fill, "shift": list(self.shift), "scale": list(self.scale)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Preparation":
        """Return what `to_json` wrote.

        Raises:
            ValueError: the values are not that.
        """
        try:
            fill = tuple(np.nan if value is None else float(value) for value in values["fill"])
            shift, scale = (tuple(map(float, values[key])) for key in ("shift", "scale"))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no preparation: {error}") from error
        if not len(fill) == len(shift) == len(scale):
            raise ValueError("no preparation: lengths differ")
        return cls(fill, shift, scale)


def fit_preparation(columns: Sequence[Column], policy: Policy, support: Array) -> Preparation:
    """Return the preparation that a policy makes of a client's support split.

    Args:
        columns: of the table.
        policy: what is to be done.
        support: [N, D] inputs with NaN where a cell is empty; not looked at unless `policy.needs_support`.

    Raises:
        ConfigError: the policy needs the run's means and scales, and there are none.
        DataError: a column has no value that its mean or median could be computed of.
    """
    if "run" in (policy.missing, policy.scale) and policy.run_scaling is None:
        raise refusal(
            ConfigError,
            "--data: scale=run and missing=run need the run's data.feature-means and data.feature-scales, but it has "
            "none. Ask the server's side for them, or choose another.",
        )
    fill = _fill(columns, policy, support)
    filled = np.where(np.isnan(support), fill, support)
    shift, scale = _scaling(columns, policy, filled)
    return Preparation(tuple(fill.tolist()), tuple(shift.tolist()), tuple(scale.tolist()))


def _fill(columns: Sequence[Column], policy: Policy, support: Array) -> Array:
    width = sum(column.width for column in columns)
    if policy.missing in ("error", "drop"):
        return np.full(width, np.nan)
    fill = np.zeros(width)
    if policy.missing == "run" and policy.run_scaling:
        fill[_is_number(columns)] = policy.run_scaling[0]
    if policy.missing not in ("mean", "median"):
        return fill
    _check_known(columns, policy, support)
    first = 0
    for column in columns:
        part = slice(first, first + column.width)
        fill[part] = _center(support[:, part], policy.missing, is_category=bool(column.categories))
        first += column.width
    return fill


def _center(values: Array, missing: str, *, is_category: bool) -> Array:
    """Return the mean or median; of categories, [N, k] one-hot, the shares or the most frequent one."""
    known = values[~np.isnan(values).any(1)]
    if missing == "mean":
        return _mean_and_deviation(known)[0]
    if not is_category:
        median: Array = np.median(known, axis=0)
        return median
    most_frequent: Array = np.eye(values.shape[1])[int(known.sum(0).argmax())]
    return most_frequent


def _check_known(columns: Sequence[Column], policy: Policy, support: Array) -> None:
    starts = np.cumsum([0, *(column.width for column in columns)])[:-1]
    gone = [
        told_column(column, index)
        for index, (column, start) in enumerate(zip(columns, starts, strict=True))
        if bool(np.isnan(support[:, start]).all())
    ]
    if gone:
        raise refusal(
            DataError,
            f"expected a value to compute the {policy.missing} of, but no row of the support split has one in "
            f"{shown_names(gone)}; choose missing=zero or missing=run",
        )


def _scaling(columns: Sequence[Column], policy: Policy, support: Array) -> tuple[Array, Array]:
    """Return (shift, scale) [D]; categories keep their 0 and 1, and a column that never varies is only shifted.

    A column varies if its deviation is more than float32's rounding of its own values: the deviation of 0.1, 0.1, 0.1
    is 1.4e-17 in float64, and dividing by it would make the next patient's 0.2 a 7e15.
    """
    numbers = _is_number(columns)
    shift, scale = np.zeros(len(numbers)), np.ones(len(numbers))
    if policy.scale == "run" and policy.run_scaling:
        shift[numbers], scale[numbers] = policy.run_scaling
    if policy.scale == "local" and numbers.any():
        shift[numbers], deviation = _mean_and_deviation(support[:, numbers])
        scale[numbers] = np.where(deviation > NOISE * np.abs(support[:, numbers]).max(0), deviation, 1.0)
    return shift, scale


def _mean_and_deviation(values: Array) -> tuple[Array, Array]:
    """Return the mean and the deviation of each column, finite also where the squares of its values are not."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = values.mean(0), values.std(0)
    if np.isfinite(mean).all() and np.isfinite(deviation).all():
        return mean, deviation
    largest = np.maximum(np.abs(values).max(0), 1.0)
    return (values / largest).mean(0) * largest, (values / largest).std(0) * largest


def _is_number(columns: Sequence[Column]) -> Array:
    """Return [D], whether each input is a column without categories."""
    return np.repeat([not column.categories for column in columns], [column.width for column in columns])
