"""The form of inputs in words, and inputs of that form that hold nothing, for models before there are examples."""

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
