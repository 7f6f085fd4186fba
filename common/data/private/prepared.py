"""A table's rows as the examples that a model takes: prepared in float64, kept in the run's precision."""

import numpy as np
import torch
from torch import Tensor

from nufed.common.data.cast import refuse_lost
from nufed.common.data.pool import Rows
from nufed.common.data.private.preparation import Preparation
from nufed.common.data.private.rows import PrivateRows, told_column
from nufed.common.examples import Examples, TaskInfo

_AT_ONCE = 2**12


def prepared_examples(
    rows: PrivateRows, numbers: Rows, preparation: Preparation, task: TaskInfo, dtype: torch.dtype
) -> Examples:
    """Return the examples at `numbers` [M] of a table, filled in and scaled, with values to predict in float64.

    Without labels, targets are zeros.

    Raises:
        DataError: a number is beyond the range of `dtype`.
    """
    inputs = _inputs(rows, numbers, preparation, dtype).reshape(len(numbers), *task.input_shape)
    targets = np.zeros(len(numbers), np.int64) if rows.targets is None else rows.targets[numbers]
    groups = None if rows.groups is None else torch.from_numpy(rows.groups.codes[numbers])
    if task.kind == "classification":
        return Examples(inputs, torch.from_numpy(np.ascontiguousarray(targets)).to(torch.int64), groups=groups)
    return Examples(inputs, torch.from_numpy(targets.astype(np.float64)), groups=groups)


def _inputs(rows: PrivateRows, numbers: Rows, preparation: Preparation, dtype: torch.dtype) -> Tensor:
    """Return prepared inputs [M, D], some rows at a time, so that no second copy of them all is made."""
    inputs = torch.empty(len(numbers), rows.inputs.shape[1], dtype=dtype)
    lost = torch.zeros(rows.inputs.shape[1], dtype=torch.int64)
    for first in range(0, len(numbers), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        inputs[part] = torch.from_numpy(preparation.apply(rows.inputs[numbers[part]]))
        lost += inputs[part].isinf().sum(0)
    told = [told_column(column, index) for index, column in enumerate(rows.columns) for _ in range(column.width)]
    refuse_lost(lost, len(numbers), dtype, told.__getitem__)
    return inputs
