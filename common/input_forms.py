"""The form of inputs in words, and inputs of that form that hold nothing, for models before there are examples."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nufed.common.examples import InputSpec, TaskInfo, TensorSpec
from nufed.common.trees import Tree


def dummy_inputs(task: TaskInfo, num_examples: int, like: Tensor) -> Tree:
    """Return inputs [B, …]: random numbers from 0 to 1, and 1 for integers and booleans, which number or mask.

    Args:
        task: says the form.
        num_examples: B.
        like: of the type that floating-point numbers get, on the device of all.
    """
    generator = torch.Generator().manual_seed(0)

    def tensor(spec: TensorSpec) -> Tensor:
        shape = (num_examples, *spec.shape)
        if spec.dtype == "float":
            return torch.rand(shape, generator=generator).to(like)
        return torch.ones(shape, dtype=torch.int64 if spec.dtype == "integer" else torch.bool, device=like.device)

    def tree(spec: InputSpec) -> Tree:
        if isinstance(spec, TensorSpec):
            return tensor(spec)
        if is_named(spec):
            return {name: tree(part) for name, part in spec}
        return tuple(tree(part) for part in spec)

    return tree(task.input_spec or TensorSpec(task.input_shape))


def is_named(spec: InputSpec) -> bool:
    """Return whether a form is that of a dict."""
    return isinstance(spec, tuple) and all(isinstance(part, tuple) and isinstance(part[0], str) for part in spec)


def arrays_of(task: TaskInfo) -> list[tuple[tuple[str | int, ...], TensorSpec]]:
    """Return each tensor's path in the inputs, names in dicts and numbers in tuples, and its form, in order."""

    def found(spec: InputSpec, path: tuple[str | int, ...]) -> list[tuple[tuple[str | int, ...], TensorSpec]]:
        if isinstance(spec, TensorSpec):
            return [(path, spec)]
        parts = spec if is_named(spec) else tuple(enumerate(spec))
        return [each for place, part in parts for each in found(part, (*path, place))]

    return found(task.input_spec or TensorSpec(task.input_shape), ())


def described_inputs(task: TaskInfo) -> str:
    """Return the form of the inputs in words, such as `of shape [B, 3]`."""

    def words(spec: InputSpec) -> str:
        if isinstance(spec, TensorSpec):
            kind = "" if spec.dtype == "float" else f" of {spec.dtype}s"
            return f"[{', '.join(map(str, ('B', *spec.shape)))}]{kind}"
        if is_named(spec):
            return ", ".join(f"{name} {words(part)}" for name, part in spec)
        return ", ".join(words(part) for part in spec)

    return f"of shape {words(task.input_spec or TensorSpec(task.input_shape))}"


def task_to_json(task: TaskInfo) -> dict[str, Any]:
    """Return a task as JSON values; what is as ever stands as it always stood."""
    further = {
        "input_spec": None if task.input_spec is None else _spec_to_json(task.input_spec),
        "target_shape": list(task.target_shape),
        "options": dict(task.options),
    }
    return {
        "kind": task.kind,
        "input_shape": list(task.input_shape),
        "num_outputs": task.num_outputs,
        "class_names": list(task.class_names),
        **{name: value for name, value in further.items() if value},
    }


def task_from_json(values: Mapping[str, Any]) -> TaskInfo:
    """Return the task that `task_to_json` wrote.

    Raises:
        ValueError: the values are not such a task's.
        KeyError: one is missing.
    """
    try:
        spec = values.get("input_spec")
        return TaskInfo(
            str(values["kind"]),
            tuple(map(int, values["input_shape"])),
            int(values["num_outputs"]),
            tuple(map(str, values["class_names"])),
            None if spec is None else _spec_from_json(spec),
            tuple(map(int, values.get("target_shape", ()))),
            tuple(sorted(values.get("options", {}).items())),
        )
    except (TypeError, AttributeError) as error:
        raise ValueError(f"the task is not as it is written ({error})") from error


def _spec_to_json(spec: InputSpec) -> Any:
    if isinstance(spec, TensorSpec):
        return {"shape": list(spec.shape), "dtype": spec.dtype}
    if is_named(spec):
        return [[name, _spec_to_json(part)] for name, part in spec]
    return [_spec_to_json(part) for part in spec]


def _spec_from_json(value: Any) -> InputSpec:
    if isinstance(value, str):
        return value  # type: ignore[return-value] # a name beside its form
    if isinstance(value, Mapping):
        return TensorSpec(tuple(map(int, value["shape"])), value["dtype"])
    return tuple(_spec_from_json(part) for part in value)
