"""What arrays from outside must be before they become examples: shapes, finite numbers, class numbers."""

from typing import Any

import numpy as np
import torch

from nufed.common.data.pool import Array
from nufed.common.errors import DataError
from nufed.common.examples import TaskKind

FIX_MISSING = "fill them in, or leave those rows or columns out, before the examples are handed over"


def as_array(values: Any, what: str) -> Array:
    """Return a tensor, array or nested list as an array of numbers.

    Raises:
        DataError: it is ragged, or not of numbers.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"expected {what} to be an array, but {error}; give every example the same shape") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"expected {what} to be numbers, but got {array.dtype}; convert them to numbers")
    return array


def image_layout(inputs: Array) -> Array:
    """Return pixels as [N, C, H, W] views, anything else as it is.

    uint8 with three dimensions are grey images [N, H, W]; with four, the last of which is 1 or 3, color images
    [N, H, W, C].
    """
    if inputs.dtype == np.uint8 and inputs.ndim == 3:
        return inputs[:, None]
    if inputs.dtype == np.uint8 and inputs.ndim == 4 and inputs.shape[3] in (1, 3):
        return inputs.transpose(0, 3, 1, 2)
    return inputs


def check_inputs(inputs: Array, what: str, feature_names: tuple[str, ...] = ()) -> None:
    """Refuse inputs that are no table of examples, or hold NaN or infinite values.

    Raises:
        DataError: naming each feature that lacks values and how many it lacks.
    """
    if inputs.ndim < 2:
        raise DataError(
            f"expected {what} of shape [N, ...], one row for each example, but got {list(inputs.shape)}; "
            "reshape a single feature to [N, 1]"
        )
    if inputs.dtype.kind != "f" or bool(np.isfinite(inputs).all()):
        return
    missing = ~np.isfinite(inputs)
    if inputs.ndim == 2:
        counts = missing.sum(0)
        names = feature_names or tuple(f"feature {index}" for index in range(len(counts)))
        where = ", ".join(f"{names[index]} ({counts[index]})" for index in np.flatnonzero(counts))
    else:
        where = f"{int(missing.sum())} values in {int(missing.reshape(len(inputs), -1).any(1).sum())} examples"
    raise DataError(
        f"expected finite numbers in {what}, but of {len(inputs)} examples some have NaN or infinite values: {where}; "
        f"{FIX_MISSING}"
    )


def as_targets(targets: Array, what: str) -> tuple[TaskKind, Array]:
    """Return (classification, class numbers [N] int64) for whole numbers, (regression, values [N, K]) for floats.

    Raises:
        DataError: the shape is neither, a class number is negative, or a value is not finite.
    """
    if targets.dtype.kind == "f":
        values = targets[:, None] if targets.ndim == 1 else targets
        if values.ndim != 2 or not bool(np.isfinite(values).all()):
            raise DataError(
                f"expected {what} to be finite values of shape [N] or [N, K], but got shape {list(targets.shape)} with "
                f"{int((~np.isfinite(targets)).sum())} values that are NaN or infinite; give classes as whole numbers "
                "and values as finite floats"
            )
        return "regression", values
    if targets.ndim != 1 or (len(targets) and targets.min() < 0):
        raise DataError(
            f"expected {what} to be class numbers from 0, of shape [N], but got shape {list(targets.shape)}"
            + (f" with {int((targets < 0).sum())} values below 0" if targets.size else "")
            + "; number the classes from 0"
        )
    return "classification", targets.astype(np.int64)
