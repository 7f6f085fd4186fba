"""What fills a cell of new data that was never empty in the examples that a personal model was adapted to.

A model made with missing=error or drop has no rule for empty cells, and meets them all the same when it is used. The
median of the support split, or its most frequent category, is fitted whatever the rule, and kept with the model.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from nufed.common.data.pool import Array, Rows
from nufed.common.data.private.preparation import Preparation, fill_of
from nufed.common.data.private.rows import PrivateRows, refusal
from nufed.common.data.private.task import Column, value_slices
from nufed.common.errors import ConfigError, DataError, nearest_match_hint

Way = Literal["fill", "drop"]
_WAYS: dict[str, Way] = {"fill": "fill", "drop": "drop"}


def find_way(name: str) -> Way:
    """Return what `--missing` of a prediction names.

    Raises:
        ConfigError: it is neither `fill` nor `drop`.
    """
    if name not in _WAYS:
        raise ConfigError(f"--missing={name!r} is unknown. Type fill or drop.{nearest_match_hint(name, _WAYS)}")
    return _WAYS[name]


def with_spare(preparation: Preparation, columns: Sequence[Column], inputs: Array, support: Rows) -> Preparation:
    """Return a preparation that knows the middle of the support split where it fills in nothing.

    Args:
        preparation: of the support split.
        columns: of the table.
        inputs: [N, D] as they were read, NaN where a cell is empty; not looked at where every cell is filled in.
        support: [M] rows of the support split.
    """
    if not np.isnan(preparation.fill).any():
        return preparation
    spare = np.full(len(preparation.fill), np.nan)
    for column, part in zip(columns, value_slices(columns), strict=True):
        spare[part] = fill_of(column, "median", inputs[support, part].astype(np.float64))
    return replace(preparation, spare=tuple(spare.tolist()))


def settle_empty(rows: PrivateRows, preparation: Preparation, way: Way) -> tuple[PrivateRows, Preparation, str]:
    """Return rows to predict, the preparation that leaves none of their cells empty, and what was done for it.

    Args:
        rows: of a table; those that are left keep their numbers.
        preparation: of the model.
        way: whether rows with a cell that it leaves empty are filled in, or left out.

    Raises:
        DataError: there is nothing to fill in, or no row is left.
    """
    empty = np.isnan(preparation.apply(rows.inputs)).any(1)
    count, size = int(empty.sum()), len(rows)
    if not count:
        return rows, preparation, ""
    if way == "drop":
        if count == size:
            raise refusal(DataError, f"expected rows to predict, but each of {size} has an empty cell; fill some in")
        left = rows.take(np.flatnonzero(~empty))
        return left, preparation, f"{count} of {size} rows have an empty cell and are left out (--missing drop)"
    whole = filled(preparation)
    still = np.isnan(whole.apply(rows.inputs)).any(1)
    if still.any():
        raise refusal(
            DataError,
            "expected a value in every cell, because the model was made with missing=error or drop and has nothing to "
            f"fill in, but {int(still.sum())} of {size} rows lack one; type --missing drop to leave them out, or make "
            "the personal model again",
            "the first row with an empty cell is row %d",
            rows.numbers[np.flatnonzero(still)[0]],
        )
    told = (
        f"{count} of {size} rows have an empty cell that the model has no rule for: the median (of categories, the "
        "most frequent) of the examples that it was adapted to is put there; --missing drop leaves these rows out"
    )
    return rows, whole, told


def filled(preparation: Preparation) -> Preparation:
    """Return the preparation that fills every empty cell that there is anything for."""
    if not preparation.spare:
        return preparation
    fill = np.array(preparation.fill)
    return replace(preparation, fill=tuple(np.where(np.isnan(fill), preparation.spare, fill).tolist()), spare=())
