"""Inputs of several arrays that belong together: an array, a tuple or a dict of them, before they become tensors."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nufed.common.data.cast import cast, input_name
from nufed.common.errors import DataError
from nufed.common.examples import InputSpec, TensorSpec
from nufed.common.trees import Tree

Array = NDArray[Any]
ArrayTree: TypeAlias = Any
"""An array [N, ...], or a tuple or dict of such trees; sources of one table read theirs as an array."""


def is_tree(values: object) -> bool:
    """Return whether what was given is several arrays: a dict, or a tuple of arrays; lists and numbers are one."""
    if isinstance(values, tuple):
        return bool(values) and all(is_tree(part) or getattr(part, "ndim", 0) > 0 for part in values)
    return isinstance(values, Mapping)


def map_arrays(function: Callable[..., Any], tree: ArrayTree, *others: Any) -> Any:
    """Return the tree of what a function makes of each array, and of what stands at its place in other trees."""
    if isinstance(tree, tuple):
        return tuple(map_arrays(function, *parts) for parts in zip(tree, *others, strict=True))
    if isinstance(tree, Mapping):
        return {name: map_arrays(function, part, *(other[name] for other in others)) for name, part in tree.items()}
    return function(tree, *others)


def named_arrays(tree: ArrayTree, path: str = "") -> Iterator[tuple[str, Array]]:
    """Yield each array with its place, such as `mask` or `0`; empty for one alone."""
    if isinstance(tree, tuple):
        for number, part in enumerate(tree):
            yield from named_arrays(part, f"{path}.{number}" if path else str(number))
    elif isinstance(tree, Mapping):
        for name, part in tree.items():
            yield from named_arrays(part, f"{path}.{name}" if path else name)
    else:
        yield path, tree


def first_array(tree: ArrayTree) -> Array:
    """Return the first array."""
    return next(named_arrays(tree))[1]


def rows_of(tree: ArrayTree) -> int:
    """Return N."""
    return len(first_array(tree))


def take_rows(tree: ArrayTree, rows: Any) -> ArrayTree:
    """Return the examples at `rows` [M]."""
    taken: ArrayTree = map_arrays(lambda array: array[rows], tree)
    return taken


def concatenate(trees: Sequence[ArrayTree]) -> ArrayTree:
    """Return the examples of all trees behind one another."""
    joined: ArrayTree = map_arrays(lambda *parts: np.concatenate(parts), *trees)
    return joined


def as_array_tree(values: Any, what: str, read: Callable[[Any, str], Array]) -> ArrayTree:
    """Return a tuple or dict as a tree of arrays, and anything else as one array.

    Args:
        values: as they were given.
        what: names them in messages.
        read: makes an array of one part.

    Raises:
        DataError: there are no parts, a name is no argument that a model can have, or parts differ in length.
    """
    if not is_tree(values):
        return read(values, what)
    if not values:
        raise DataError(f"expected {what} to have parts, but got none; give at least one")
    tree: ArrayTree
    if isinstance(values, tuple):
        tree = tuple(as_array_tree(part, f"part {number} of {what}", read) for number, part in enumerate(values))
    else:
        if bad := [name for name in values if not isinstance(name, str) or not name.isidentifier()]:
            raise DataError(
                f"expected names of {what} that are arguments of the model's forward, but {str(bad[0])!r} cannot be; "
                "rename it"
            )
        tree = {name: as_array_tree(values[name], f"{name} of {what}", read) for name in sorted(values)}
    lengths = {place: len(array) if array.ndim else 0 for place, array in named_arrays(tree)}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{place} {length}" for place, length in lengths.items())
        raise DataError(f"expected as many rows in every part of {what}, but got {told}; give one for each example")
    return tree


def is_pixels(array: Array) -> bool:
    """Return whether an array holds images, which are scaled to [0, 1]."""
    return array.dtype == np.uint8 and array.ndim >= 3


def spec_of(tree: ArrayTree, *, keep_integers: bool = False) -> InputSpec | None:
    """Return what one input is made of; None for one array of numbers.

    Args:
        tree: inputs [N, ...].
        keep_integers: whether one array of whole numbers holds ids, or numbers like any other. Several arrays keep
            their types anyhow.
    """
    if not is_tree(tree):
        found = _spec(first_array(tree))
        return found if keep_integers and found.dtype != "float" else None
    return _specs(tree)


def _specs(tree: ArrayTree) -> InputSpec:
    if isinstance(tree, tuple):
        return tuple(_specs(part) for part in tree)
    if isinstance(tree, Mapping):
        return tuple((name, _specs(part)) for name, part in tree.items())
    return _spec(tree)


def _spec(array: Array) -> TensorSpec:
    if array.dtype.kind == "b":
        return TensorSpec(array.shape[1:], "boolean")
    is_float = array.dtype.kind == "f" or is_pixels(array)
    return TensorSpec(array.shape[1:], "float" if is_float else "integer")


def as_tensors(tree: ArrayTree, spec: InputSpec, dtype: torch.dtype) -> Tree:
    """Return tensors of the forms that a task says, sharing no memory with the arrays.

    Args:
        tree: inputs [M, ...].
        spec: of one input.
        dtype: what floating-point numbers become.

    Raises:
        DataError: a number is beyond the range of `dtype`.
    """
    if isinstance(spec, TensorSpec):
        return _tensor(first_array(tree), spec, dtype)
    if isinstance(tree, Mapping):
        forms: dict[str, Any] = dict(spec)
        return {name: as_tensors(part, forms[name], dtype) for name, part in tree.items()}
    return tuple(as_tensors(part, form, dtype) for part, form in zip(tree, spec, strict=True))


def _tensor(array: Array, spec: TensorSpec, dtype: torch.dtype) -> Tensor:
    if spec.dtype != "float":
        return torch.from_numpy(np.array(array)).to(torch.bool if spec.dtype == "boolean" else torch.int64)
    tensor = cast(array, dtype, input_name)
    return (tensor.div_(255) if is_pixels(array) else tensor).reshape(len(array), *spec.shape)
