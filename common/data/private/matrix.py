"""Numbers that are read in parts, held in little more memory than they need."""

import numpy as np

from nufed.common.data.pool import Array

_GROWTH = 1.125


class Matrix:
    """Holds rows of numbers as they come: in float32 as long as that has every one of them exactly, else in float64."""

    def __init__(self, width: int) -> None:
        """Begin with no row."""
        self._held: Array = np.empty((0, width), np.float32)
        self._num_rows = 0

    def append(self, rows: Array) -> None:
        """Add rows [M, width]; NaN is a number here."""
        if self._held.dtype == np.float32 and not _fits(rows):
            self._widen()
        end = self._num_rows + len(rows)
        if end > len(self._held):
            # In place: the system moves pages instead of copying numbers.
            self._held.resize((max(end, int(_GROWTH * len(self._held))), self._held.shape[1]), refcheck=False)
        self._held[self._num_rows : end] = rows
        self._num_rows = end

    def close(self) -> Array:
        """Return all rows [N, width]; nothing can be added afterwards."""
        self._held.resize((self._num_rows, self._held.shape[1]), refcheck=False)
        return self._held

    def _widen(self) -> None:
        wide = np.empty(self._held.shape, np.float64)
        wide[: self._num_rows] = self._held[: self._num_rows]
        self._held = wide


def _fits(rows: Array) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.array_equal(rows.astype(np.float32), rows, equal_nan=True))
