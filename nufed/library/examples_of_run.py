"""Somebody's examples, as the task of a run has them: any kind of targets, and inputs of several arrays."""

from typing import Any

import numpy as np
import torch

from nufed.common.data.array_trees import ArrayTree, first_array, is_tree, rows_of, spec_of
from nufed.common.data.pool import Table
from nufed.common.data.task_of_arrays import read_inputs, read_targets
from nufed.common.errors import DataError
from nufed.common.examples import Examples, TaskInfo, TensorSpec
from nufed.common.input_forms import described_inputs
from nufed.common.tasks.client_check import check_targets


def inputs_of_task(task: TaskInfo, inputs: Any) -> ArrayTree:
    """Return inputs [N, ...].

    Raises:
        DataError: they are malformed, or not what the task's model takes.
    """
    read = read_inputs(inputs, "inputs")
    found = spec_of(read, keep_integers=task.input_spec is not None) or TensorSpec(first_array(read).shape[1:])
    if found != (task.input_spec or TensorSpec(task.input_shape)):
        shapes = "several arrays" if is_tree(read) else f"{first_array(read).dtype} {list(first_array(read).shape)}"
        raise DataError(
            f"expected inputs as the run had them, {described_inputs(task)} for each example, but got {shapes}; give "
            "the same arrays"
        )
    return read


def unlabelled(task: TaskInfo, inputs: ArrayTree, dtype: torch.dtype) -> Examples:
    """Return examples without targets, of inputs as `inputs_of_task` returns them."""
    rows = np.arange(rows_of(inputs))
    form = TaskInfo("classification", task.input_shape, 1, input_spec=task.input_spec)
    return Table(inputs, np.zeros(len(rows), np.int64)).examples(rows, form, dtype)


def labelled(task: TaskInfo, inputs: ArrayTree, targets: Any, dtype: torch.dtype) -> Examples:
    """Return examples with their targets, as they came.

    Raises:
        DataError: the targets are not the task's, or not one for each input.
    """
    kind, labels = read_targets(targets, "" if task.kind == "classification" else task.kind, "targets")
    if kind != task.kind:
        raise DataError(f"expected targets for {task.kind}, but got those of {kind}; give the run's kind of targets")
    if rows_of(inputs) != rows_of(labels) or not rows_of(labels):
        raise DataError(
            f"expected as many targets as inputs, and at least one, but got {rows_of(labels)} and {rows_of(inputs)}; "
            "give every example one target"
        )
    wanted = (task.num_outputs,) if kind == "regression" else task.target_shape
    if not is_tree(labels) and first_array(labels).shape[1:] != wanted:
        raise DataError(
            f"expected each target to have the shape {list(wanted)}, as the run had them, but got "
            f"{list(first_array(labels).shape[1:])}; give the same kind of targets"
        )
    examples = Table(inputs, labels).examples(np.arange(rows_of(labels)), task, dtype)
    check_targets(examples.targets, task, "targets")
    return examples
