"""From arrays of inputs and targets to the task that they are for, where data say no more of themselves."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nufed.common.config import DataConfig
from nufed.common.config.lists import read_names
from nufed.common.data.array_trees import ArrayTree, as_array_tree, first_array, is_tree, spec_of
from nufed.common.data.raw import as_array, as_targets, check_inputs, count_classes, image_layout
from nufed.common.errors import DataError
from nufed.common.examples import InputSpec, TaskInfo
from nufed.common.tasks.own import is_own

INFERRED = ("classification", "regression")
"""What whole numbers [N] and floating-point numbers are where `data.task` says nothing else."""


def wanted_kind(config: DataConfig) -> str:
    """Return the task that the options name; empty where the targets decide."""
    return "" if config.task == "classification" else config.task


def read_inputs(values: Any, what: str, feature_names: tuple[str, ...] = ()) -> ArrayTree:
    """Return inputs [N, ...], pixels as [N, C, H, W]; a tuple or a dict of arrays stays one.

    Raises:
        DataError: they are ragged, no numbers, of unequal length, or not finite.
    """
    if not is_tree(values):
        inputs = image_layout(as_array(values, what))
        check_inputs(inputs, what, feature_names if inputs.shape[1:] == (len(feature_names),) else ())
        return inputs
    return as_array_tree(values, what, _read_part)


def _read_part(values: Any, what: str) -> np.ndarray:
    array = image_layout(as_array(values, what))
    if array.ndim < 1:
        raise DataError(f"expected {what} of shape [N, ...], one row for each example, but got one number")
    if array.dtype.kind == "f" and (count := int((~np.isfinite(array)).sum())):
        raise DataError(f"expected finite numbers in {what}, but {count} are NaN or infinite; fill them in")
    return array


def read_targets(values: Any, kind: str, what: str) -> tuple[str, ArrayTree]:
    """Return (task, targets [N, ...]).

    Args:
        values: as they were given.
        kind: a task; empty for classes where they are whole numbers [N], and else values.
        what: names them in messages.

    Raises:
        DataError: they are no numbers, or cannot be that task's.
    """
    if not kind:
        return as_targets(values, what)
    if is_own(kind):
        return kind, as_array_tree(values, what, as_array)
    targets = as_array(values, what)
    if kind in ("segmentation", "tokens"):
        if targets.ndim < 2 or targets.dtype.kind not in "iub":
            raise DataError(
                f"expected {what} to be class numbers of shape [N, ...], one for each position of an example, but got "
                f"{targets.dtype} of shape {list(targets.shape)}; data.task={kind} needs whole numbers"
            )
        return kind, targets.astype(np.int64)
    if targets.ndim == 1:
        targets = targets[:, None]
    if targets.ndim != 2:
        raise DataError(f"expected {what} of shape [N, K] for data.task={kind}, but got {list(targets.shape)}; reshape")
    return kind, targets.astype(np.float64) if targets.dtype.kind != "f" else targets


def task_of_arrays(kind: str, inputs: ArrayTree, parts: Sequence[ArrayTree], config: DataConfig, what: str) -> TaskInfo:
    """Return the task of inputs [N, ...] and the targets of all parts.

    Args:
        kind: a task.
        inputs: of the first part.
        parts: targets, each [N, ...].
        config: `data.num-outputs` and `data.class-names` count classes where the targets cannot tell all.
        what: names the targets in messages.

    Raises:
        DataError: the numbers of classes are no count but codes.
    """
    shape = first_array(parts[0]).shape[1:]
    names = read_names(config.class_names) if kind not in INFERRED else ()
    if kind in ("regression", "multi-label", "counts"):
        num_outputs = shape[0]
    else:
        num_outputs = len(names) or (config.num_outputs if kind not in INFERRED else 0) or _count(kind, parts, what)
    if kind == "classification":
        names = tuple(map(str, range(num_outputs)))
    input_shape, input_spec = input_form(inputs, config)
    return TaskInfo(
        kind,
        input_shape,
        num_outputs,
        tuple(names),
        input_spec=input_spec,
        target_shape=() if kind in INFERRED or is_tree(parts[0]) else tuple(shape),
    )


def input_form(inputs: ArrayTree, config: DataConfig) -> tuple[tuple[int, ...], InputSpec | None]:
    """Return a task's `input_shape` and `input_spec` for inputs [N, ...]."""
    shape = () if is_tree(inputs) else first_array(inputs).shape[1:]
    return tuple(shape), spec_of(inputs, keep_integers=config.keeps_integers)


def _count(kind: str, parts: Sequence[ArrayTree], what: str) -> int:
    if not is_own(kind):
        flat = [np.asarray(part).ravel() for part in parts]
        return count_classes([part[part >= 0] for part in flat], what, "or set data.num-outputs")
    first = first_array(parts[0])
    if first.dtype.kind == "f":
        return int(first.shape[1]) if first.ndim == 2 else 1
    return 1 + max(int(first_array(part).max(initial=0)) for part in parts)
