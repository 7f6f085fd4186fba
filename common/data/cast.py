"""From raw numbers to tensors of the run's precision; what that precision cannot hold is refused, not made infinite."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nufed.common.errors import DataError
from nufed.common.trees import Tree, tree_map

_LISTED = 20


def cast(values: NDArray[np.generic], dtype: torch.dtype, name: Callable[[int], str]) -> Tensor:
    """Return numbers [N, ...], none infinite, as a tensor of a floating-point type; it shares no memory with them.

    Args:
        values: of any NumPy type of numbers that torch has.
        dtype: of the run.
        name: index of a column (of the flattened rest) -> what the message calls it.

    Raises:
        DataError: naming the columns with numbers beyond the type's range, and how many those are; never a number.
    """
    tensor = torch.from_numpy(np.array(values)).to(dtype)
    if values.dtype.kind in "bu" and values.dtype.itemsize == 1:
        return tensor
    lost = tensor.isinf()
    if bool(lost.any()):
        refuse_lost(lost.reshape(len(tensor), -1).sum(0), len(tensor), dtype, name)
    return tensor


def cast_tree(tree: Tree, dtype: torch.dtype, name: Callable[[int], str]) -> Tree:
    """Return a tree with its floating-point leaves in a type, and the others as they are; arguments as `cast`.

    Raises:
        DataError: as `cast`.
    """
    return tree_map(lambda leaf: cast(leaf.numpy(), dtype, name) if leaf.is_floating_point() else leaf, tree)


def refuse_lost(counts: Tensor, num_examples: int, dtype: torch.dtype, name: Callable[[int], str]) -> None:
    """Refuse numbers that a type cannot hold.

    Args:
        counts: [D] of such numbers in each column.
        num_examples: of all.
        dtype: of the run.
        name: index of a column -> what the message calls it.

    Raises:
        DataError: naming the columns with such numbers; never a number.
    """
    columns = torch.nonzero(counts).flatten().tolist()
    if not columns:
        return
    where = ", ".join(f"{name(column)} ({int(counts[column])})" for column in columns[:_LISTED])
    more = f" and {len(columns) - _LISTED} more" if len(columns) > _LISTED else ""
    precise = str(dtype).removeprefix("torch.")
    wider = ", or run with model.dtype=float64" * (dtype is not torch.float64)
    error = DataError(
        f"expected numbers that {precise} can hold, but of {num_examples} examples some have larger ones: "
        f"{where}{more}; correct them, write them in another unit{wider}"
    )
    error.sendable = True  # counts, and what `name` makes public
    raise error


def input_name(column: int) -> str:
    """Return what an input without a public name is called."""
    return f"input {column + 1}"


def target_name(column: int) -> str:
    """Return what a value to predict is called."""
    return f"value to predict {column + 1}"
