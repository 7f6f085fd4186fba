"""What targets must be, task by task; messages tell counts and shapes, and no value."""

import torch
from torch import Tensor

from nufed.common.errors import DataError
from nufed.common.trees import Tree, one_tensor


def check_classes(targets: Tree, num_classes: int, shape: tuple[int, ...] = (), ignored: int | None = None) -> None:
    """Refuse targets that are not class numbers [N, *shape] below `num_classes`, or the number that is ignored.

    Raises:
        DataError: with what is wrong and how many are.
    """
    numbers = _of_shape(targets, shape, "class numbers")
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise _refused(f"expected class numbers that are integers, but got {_type(numbers)}; number the classes from 0")
    wrong = (numbers < 0) | (numbers >= num_classes)
    if ignored is not None:
        wrong &= numbers != ignored
    if count := int(wrong.sum()):
        besides = f", or {ignored} for what is not counted," if ignored is not None else ""
        raise _refused(
            f"expected class numbers from 0 to {num_classes - 1}{besides} but {count} of {numbers.numel()} are others; "
            "correct them, or the number of classes"
        )


def check_values(targets: Tree, num_values: int) -> None:
    """Refuse targets that are not finite values [N, K].

    Raises:
        DataError: with what is wrong and how many are.
    """
    values = _of_shape(targets, (num_values,), "values to predict")
    if count := int((~torch.isfinite(values)).sum()):
        raise _refused(f"expected finite values to predict, but {count} of {values.numel()} are not; correct them")


def check_labels(targets: Tree, num_labels: int) -> None:
    """Refuse targets that are not 0 or 1, [N, K].

    Raises:
        DataError: with what is wrong and how many are.
    """
    labels = _of_shape(targets, (num_labels,), "labels, one for each of several,")
    if count := int(((labels != 0) & (labels != 1)).sum()):
        raise _refused(f"expected labels that are 0 or 1, but {count} of {labels.numel()} are not; correct them")


def check_counts(targets: Tree, num_counts: int) -> None:
    """Refuse targets that are not whole numbers from 0, [N, K].

    Raises:
        DataError: with what is wrong and how many are.
    """
    counts = _of_shape(targets, (num_counts,), "counts")
    wrong = ~torch.isfinite(counts) | (counts < 0) | (counts != counts.floor())
    if count := int(wrong.sum()):
        raise _refused(
            f"expected counts, which are whole numbers from 0, but {count} of {counts.numel()} are not; correct them, "
            "or set data.task=regression for other values"
        )


def _of_shape(targets: Tree, shape: tuple[int, ...], what: str) -> Tensor:
    tensor = one_tensor(targets, what)
    if tuple(tensor.shape[1:]) != shape:
        wanted = ", ".join(map(str, ("N", *shape)))
        raise _refused(f"expected {what} of shape [{wanted}], but got {list(tensor.shape)}; reshape them")
    return tensor


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _refused(message: str) -> DataError:
    error = DataError(message)
    error.sendable = True  # counts and shapes alone
    return error
