"""What arrays from outside must be before they become examples: shapes, finite numbers, class numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nufed.common.data.array_trees import Array
from nufed.common.data.division import Names
from nufed.common.errors import LISTED, DataError
from nufed.common.examples import TaskInfo, TaskKind

_WIDEST = 8
"""Bytes of the widest numbers that torch has."""

_LARGEST_CLASS = 2**31 - 1

FEW_CLASSES, MOST_UNUSED = 100, 10

FIX_MISSING = "fill them in, or leave those rows or columns out, before the examples are handed over"


def as_array(values: Any, what: str) -> Array:
    """Return a tensor, array or nested list as an array of numbers.

    Raises:
        DataError: it is ragged, or not of numbers.
    """
    array = plain_array(values, what)
    if array.dtype.kind not in "biuf":
        raise DataError(f"expected {what} to be numbers, but got {array.dtype}; convert them to numbers")
    if array.dtype.itemsize > _WIDEST:
        with np.errstate(over="ignore"):  # what becomes infinite is refused where finite numbers are expected
            return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def plain_array(values: Any, what: str) -> Array:
    """Return a tensor, array or nested list as an array of whatever it holds.

    Raises:
        DataError: it is ragged, or has values that are masked or of a type that NumPy lacks.
    """
    if isinstance(values, np.ma.MaskedArray):
        if masked := int(np.sum(np.ma.getmaskarray(values))):
            raise DataError(f"expected {what} without masked values, but {masked} are; {FIX_MISSING}")
        values = values.data
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach().cpu()
            values = (values.float() if values.dtype is torch.bfloat16 else values).resolve_conj().numpy()
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise DataError(f"expected {what} to be an array, but {error}; give every example the same shape") from error


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
    if 0 in inputs.shape[1:]:
        raise DataError(
            f"expected {what} to have values in each example, but their shape is {list(inputs.shape)}; add columns"
        )
    if inputs.dtype.kind != "f" or bool(np.isfinite(inputs).all()):
        return
    missing = ~np.isfinite(inputs)
    if inputs.ndim == 2:
        counts = missing.sum(0)
        names = feature_names or tuple(f"feature {index}" for index in range(len(counts)))
        lacking = np.flatnonzero(counts)
        where = ", ".join(f"{names[index]} ({counts[index]})" for index in lacking[:LISTED])
        where += f" and {len(lacking) - LISTED} more" if len(lacking) > LISTED else ""
    else:
        where = f"{int(missing.sum())} values in {int(missing.reshape(len(inputs), -1).any(1).sum())} examples"
    raise DataError(
        f"expected finite numbers in {what}, but of {len(inputs)} examples some have NaN or infinite values: {where}; "
        f"{FIX_MISSING}"
    )


def as_targets(values: Any, what: str) -> tuple[TaskKind, Array]:
    """Return (classification, class numbers [N] int64) for whole numbers, (regression, values [N, K]) for floats.

    Raises:
        DataError: they are no numbers, the shape is neither, a class number is negative, or a value is not finite.
    """
    if (plain := plain_array(values, what)).dtype.kind in "USO":
        raise DataError(
            f"expected {what} to be numbers, but got {plain.dtype}; number the classes from 0, in class_names' order"
        )
    targets = as_array(plain, what)
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
    if len(targets) and int(targets.max()) > _LARGEST_CLASS:
        raise DataError(
            f"expected {what} to be class numbers from 0, but {int((targets > _LARGEST_CLASS).sum())} are above "
            f"{_LARGEST_CLASS}; number the classes from 0"
        )
    return "classification", targets.astype(np.int64)


def as_names(values: Any, what: str) -> Names:
    """Return the name of each of N examples, of whole numbers or text [N].

    Raises:
        DataError: they are neither.
    """
    array = plain_array(values, what)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.reshape(-1)):
        array = array.astype(str)
    if array.ndim != 1 or array.dtype.kind not in "iuUS":
        raise DataError(
            f"expected {what} to be names or whole numbers of shape [N], but got {array.dtype} of shape "
            f"{list(array.shape)}; convert them"
        )
    found, codes = np.unique(array, return_inverse=True)
    return Names(codes.astype(np.int64), tuple(map(str, decoded(found).tolist())))


def decoded(values: Array) -> Array:
    """Return bytes as the text that they are in UTF-8, and anything else as it is."""
    text: Array = np.char.decode(values, "utf-8", "backslashreplace") if values.dtype.kind == "S" else values
    return text


def count_classes(parts: Sequence[Array], what: str, otherwise: str = "") -> int:
    """Return how many classes there are where nobody names them: one more than the largest class number.

    Args:
        parts: class numbers, each [N].
        what: names them in the message.
        otherwise: what could be done instead of numbering them anew.

    Raises:
        DataError: nearly all of these classes would be without an example, so that the numbers are no count but codes.
    """
    used, count = _used_and_count(parts)
    if count > max(FEW_CLASSES, MOST_UNUSED * used):
        raise DataError(
            f"expected {what} to number the classes from 0, but {used} different numbers up to {count - 1} would make "
            f"{count} classes; write 0 to {used - 1} in their place{', ' * bool(otherwise)}{otherwise}"
        )
    return count


def class_notes(task: TaskInfo, parts: Sequence[Array], source: str) -> tuple[str, ...]:
    """Return what a reader should know of targets whose classes nobody names."""
    if task.kind == "regression":
        values = np.unique(np.concatenate(parts))
        if task.num_outputs == 1 and len(values) <= LISTED and bool((values == np.abs(np.round(values))).all()):
            return (f"targets of {source} are whole floats, taken as values to predict; classes are whole numbers",)
        return ()
    used, count = _used_and_count(parts)
    return (f"of the {count} classes of {source}, {count - used} have no example",) if used < count else ()


def _used_and_count(parts: Sequence[Array]) -> tuple[int, int]:
    numbers = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
    return len(numbers), 1 + int(numbers.max(initial=0))
