"""Preparing archives for the `npz` source: tables with missing values, and black ink on white paper."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nufed.common.data.pool import Array
from nufed.common.durable_file import replace_durably
from nufed.common.errors import DataError


def standardized_archive(source: Path, target: Path) -> Path:
    """Write a copy of an archive whose features are standardized by user, missing values filled; return its path.

    Each user's features get mean 0 and standard deviation 1 over that user's training part (features that do not vary
    there become 0), and a missing value becomes 0, the user's own mean. A user who lacks a feature altogether has 0
    throughout. Nothing is computed across users, so that preparing the data tells nobody anything.

    Args:
        source: an archive with x_train, y_train, user_train and x_test, y_test, user_test.
        target: where to write.

    Raises:
        DataError: an array is missing.
    """
    with np.load(source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    needed = {f"{kind}_{part}" for kind in ("x", "y", "user") for part in ("train", "test")}
    if missing := sorted(needed - arrays.keys()):
        raise DataError(f"expected {', '.join(sorted(needed))} in {source}, but it lacks {', '.join(missing)}")
    for user in np.unique(arrays["user_train"]):
        rows = {part: arrays[f"user_{part}"] == user for part in ("train", "test")}
        mean, scale = _statistics(arrays["x_train"][rows["train"]])
        for part, own in rows.items():
            values = (arrays[f"x_{part}"][own] - mean) / scale
            arrays[f"x_{part}"][own] = np.where(np.isfinite(values), values, 0.0)
    kept = {name: array for name, array in arrays.items() if not name.startswith("num_")}
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(target, lambda partial: _save(partial, kept))
    return Path(os.path.relpath(target))


def inverted_archive(source: Path, target: Path) -> Path:
    """Write a copy of an archive whose 8-bit pixels are inverted; return its path.

    Black ink on white paper gives inputs that are nearly all 1 and all alike, whose losses are so ill-conditioned that
    only tiny steps are stable; ink that shines on black, as in MNIST, does not.

    Raises:
        DataError: there are no 8-bit pixels.
    """
    with np.load(source, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    pixels = [name for name in arrays if name.startswith("x") and arrays[name].dtype == np.uint8]
    if not pixels:
        raise DataError(f"expected 8-bit pixels to invert in {source}, but it has none; leave prepare out")
    inverted = {name: 255 - array if name in pixels else array for name, array in arrays.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(target, lambda partial: _save(partial, inverted))
    return Path(os.path.relpath(target))


def _statistics(values: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation [F] over the values that are there; 0 and 1 where there are none."""
    present = np.isfinite(values)
    count = np.maximum(present.sum(0), 1)
    filled = np.where(present, values, 0.0).astype(np.float64)
    mean = filled.sum(0) / count
    deviation = np.sqrt((np.where(present, values - mean, 0.0) ** 2).sum(0) / count)
    return mean, np.where(deviation > 0, deviation, 1.0)


def _save(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


PREPARATIONS = {"standardize-by-user": standardized_archive, "invert": inverted_archive}
