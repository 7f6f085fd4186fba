"""What an exported model takes and returns, as JSON: enough to feed it from raw rows by this description alone.

The description is written beside the file (NAME.inputs.json) and into it. For a table, `inputs` has an entry for each
number of a row, in order: the column that it comes from, and the category that it is 1 for, if the column has any. An
empty cell is NaN; of a column with categories, in all of its places. `in_model` says whether the file itself fills,
shifts and scales the inputs and undoes the scaling of what it predicts, or whether the reader has to:

    x ← (x, or fill where x is NaN) - shift, divided by scale           y = output * scale + mean

`arrays` has an entry for each array that the model takes, in order: its name, its path in the tree of inputs (names in
dicts, numbers in tuples; nothing for one array alone), its shape and its type. `called` says how the model takes them:
`model(array)`, `model(*arrays)` or `model(**arrays)`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nufed.common import __version__
from nufed.common.data.private.preparation import Preparation
from nufed.common.data.private.spare import filled
from nufed.common.data.private.task import Column
from nufed.common.data.target_scaling import TargetScaling
from nufed.common.examples import TaskInfo, TensorSpec
from nufed.common.input_forms import arrays_of, described_inputs, is_named
from nufed.common.tasks import find_task

FORMAT = "nufed-inputs-1"
ENDING = ".inputs.json"

_OUTPUTS = {
    "classification": "logits: softmax gives probabilities, the largest is the class",
    "multi-label": "logits: sigmoid gives the probability of each label",
    "regression": "values",
    "counts": "logarithms: exp gives rates",
    "segmentation": "logits: softmax over the second dimension gives probabilities, the largest is the pixel's class",
    "tokens": "logits: softmax over the last dimension gives probabilities, the largest is the position's class",
}


def description_path(path: Path) -> Path:
    """Return where the description of an exported model lies, e.g. model.inputs.json beside model.onnx."""
    return path.with_name(path.stem + ENDING)


def describe(
    task: TaskInfo,
    dtype: str,
    columns: Sequence[Column],
    scalings: tuple[Preparation | None, TargetScaling | None],
    *,
    in_model: bool,
) -> dict[str, Any]:
    """Return the description of a model.

    Args:
        task: what it is for.
        dtype: of the numbers that it takes and returns, e.g. float32.
        columns: of the table, in the order of the inputs; empty where there is none, or none is known.
        scalings: of the inputs and of the values to predict; None where they are as they come.
        in_model: whether the file does what these say.
    """
    preparation, targets = scalings
    arrays = arrays_of(task)
    return {
        "format": FORMAT,
        "version": __version__,
        "task": task.kind,
        "dtype": dtype,
        "takes": described_inputs(task).removeprefix("of shape "),
        "input_shape": list(task.input_shape),
        "called": _called(task),
        "arrays": [_array(position, *each, dtype) for position, each in enumerate(arrays)],
        "images": "pixels from 0 to 1: those of 8 bits are divided by 255" if any(map(_is_image, arrays)) else None,
        "inputs": _inputs(columns, preparation),
        "empty_cells": "NaN" if preparation else "not allowed",
        "returns": _returned(task),
        "outputs": _OUTPUTS.get(task.kind, f"values: {task.kind} says what they are"),
        "class_names": list(task.class_names),
        "target_scaling": targets.to_json() if targets else None,
        "in_model": in_model,
    }


def _called(task: TaskInfo) -> str:
    spec = task.input_spec
    if spec is None or isinstance(spec, TensorSpec):
        return "model(array)"
    return "model(**arrays)" if is_named(spec) else "model(*arrays)"


def _array(position: int, path: tuple[str | int, ...], spec: TensorSpec, dtype: str) -> dict[str, Any]:
    named = path and isinstance(path[0], str)
    name = ".".join(map(str, path)) if named else "_".join(map(str, ("inputs", *path)))
    kind = {"float": dtype, "integer": "int64", "boolean": "bool"}[spec.dtype]
    return {"position": position, "name": name, "path": list(path), "shape": ["N", *spec.shape], "dtype": kind}


def _is_image(array: tuple[tuple[str | int, ...], TensorSpec]) -> bool:
    return array[1].dtype == "float" and len(array[1].shape) == 3


def _returned(task: TaskInfo) -> str:
    shape = find_task(task).output_shape
    return "an array for each example" if shape is None else f"[{', '.join(map(str, ('N', *shape)))}]"


def _inputs(columns: Sequence[Column], preparation: Preparation | None) -> list[dict[str, Any]] | None:
    """Return an entry for each number of a row; None where inputs are no row of a table."""
    named: list[dict[str, Any]] = []
    for column in columns:
        if column.categories:
            named += [{"column": column.name, "category": value} for value in column.categories]
        else:
            named.append({"column": column.name, "category": None})
        if column.indicator:
            named.append({"column": column.name, "category": None, "is": "1 where the cell is empty, else 0"})
    if preparation is None:
        return [{"position": position, **entry} for position, entry in enumerate(named)] or None
    whole = filled(preparation)
    named = named or [{"column": None, "category": None} for _ in whole.fill]
    return [
        {"position": position, **entry, "fill": None if math.isnan(fill) else fill, "shift": shift, "scale": scale}
        for position, (entry, fill, shift, scale) in enumerate(
            zip(named, whole.fill, whole.shift, whole.scale, strict=True)
        )
    ]
