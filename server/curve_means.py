"""Means, worst tenth and spread of numbers over clients, some of whom have no number."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Curve = tuple[float, ...]
Floats = NDArray[np.float64]


def stacked(curves: Sequence[Curve | None], of: Floats | None = None) -> Floats | None:
    """Return the curves that there are, [n, S+1]; with `of`, all of them, NaN where there is none or `of` is NaN."""
    if of is not None:
        missing = (math.nan,) * of.shape[1]
        rows = np.array([missing if curve is None else curve for curve in curves], dtype=np.float64)
        return finite(np.where(np.isnan(of), np.nan, rows))
    present = [curve for curve in curves if curve is not None]
    return finite(np.array(present, dtype=np.float64)) if present else None


def finite(values: Floats) -> Floats:
    """Return the values with NaN for infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def mean_curve(curves: Floats | None, weights: Floats | None = None) -> Curve | None:
    """Return `mean_of_finite` of curves; None without any."""
    return None if curves is None else as_curve(mean_of_finite(curves, weights))


def mean_of_finite(curves: Floats, weights: Floats | None = None) -> Floats:
    """Return the mean over the clients that have a number at s; NaN where none has."""
    present = np.isfinite(curves)
    shares = present if weights is None else present * weights[:, None]
    return np.asarray((np.where(present, curves, 0.0) * shares).sum(axis=0) / shares.sum(axis=0))


def worst_decile(scores: Floats, diverged: NDArray[np.bool_]) -> Floats:
    """Return the mean over the ⌈0.1 n⌉ smallest scores at each s, of the n clients for which it is defined.

    Args:
        scores: [N, S+1], larger for better; NaN where a client has none.
        diverged: [N, S+1]; where any client has, the result is NaN.
    """
    ordered, defined = np.sort(scores, axis=0), np.isfinite(scores)
    if bool((defined | diverged).all()):
        worst = ordered[: math.ceil(len(scores) / 10)].mean(axis=0)
    else:
        counts = defined.sum(axis=0)
        columns = [column[: math.ceil(count / 10)] for column, count in zip(ordered.T, counts, strict=True)]
        worst = np.array([column.mean() if len(column) else math.nan for column in columns])
    return np.where(diverged.any(axis=0), np.nan, worst)


def spread(curves: Floats) -> Floats:
    """Return the standard deviation over the clients that have a number at s; 0 for one, NaN for none."""
    means, count = mean_of_finite(curves), np.isfinite(curves).sum(axis=0)
    squares = np.where(np.isfinite(curves), (curves - means) ** 2, 0.0).sum(axis=0)
    return np.where(count > 0, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)


def as_curve(values: Floats) -> Curve:
    """Return an array as a tuple of numbers."""
    return tuple(float(value) for value in values)
