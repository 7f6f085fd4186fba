"""Trees of tensors: what a model takes or a loss compares with, one tensor or several that belong together.

A tree is a tensor, a tuple of trees or a dict of trees. Every tensor of it, a *leaf*, has one row for each example.
One tensor alone is the common case, and every function here has a way of its own for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from nufed.common.errors import DataError

Tree: TypeAlias = "Tensor | tuple[Tree, ...] | Mapping[str, Tree]"


def tree_map(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """Return the tree of what a function makes of each leaf, and of the leaves at its place in other trees."""
    if isinstance(tree, Tensor):
        return function(tree, *others)
    if isinstance(tree, tuple):
        return tuple(tree_map(function, *parts) for parts in zip(tree, *others, strict=True))
    return {name: tree_map(function, part, *(other[name] for other in others)) for name, part in tree.items()}  # type: ignore[index, call-overload]


def leaves(tree: Tree) -> Iterator[Tensor]:
    """Yield the tensors of a tree, those of a dict in its order."""
    if isinstance(tree, Tensor):
        yield tree
        return
    for part in tree if isinstance(tree, tuple) else tree.values():
        yield from leaves(part)


def first_leaf(tree: Tree) -> Tensor:
    """Return the first tensor of a tree."""
    return tree if isinstance(tree, Tensor) else next(leaves(tree))


def num_rows(tree: Tree) -> int:
    """Return N, the number of examples."""
    return len(tree) if isinstance(tree, Tensor) else len(first_leaf(tree))


def take(tree: Tree, rows: Tensor) -> Tree:
    """Return the examples at `rows` [M], in that order."""
    if isinstance(tree, Tensor):
        return tree.index_select(0, rows)
    return tree_map(lambda leaf: leaf.index_select(0, rows), tree)


def split(tree: Tree, sizes: int | list[int]) -> Sequence[Tree]:
    """Return consecutive parts of so many examples each."""
    if isinstance(tree, Tensor):
        return torch.split(tree, sizes)
    if isinstance(tree, tuple):
        return [tuple(parts) for parts in zip(*(split(part, sizes) for part in tree), strict=True)]
    columns = zip(*(split(part, sizes) for part in tree.values()), strict=True)
    return [dict(zip(tree, parts, strict=True)) for parts in columns]


def cat(trees: Sequence[Tree]) -> Tree:
    """Return the examples of all trees behind one another."""
    if isinstance(trees[0], Tensor):
        return torch.cat(trees)  # type: ignore[arg-type]
    return tree_map(lambda *parts: torch.cat(parts), *trees)


def stack(trees: Sequence[Tree]) -> Tree:
    """Return one tree whose leaves are those of all trees with a new first dimension."""
    return tree_map(lambda *parts: torch.stack(parts), *trees)


def to_device(tree: Tree, device: str | torch.device) -> Tree:
    """Return the tree on a device."""
    return tree.to(device) if isinstance(tree, Tensor) else tree_map(lambda leaf: leaf.to(device), tree)


def in_double(tree: Tree) -> Tree:
    """Return floating-point leaves in float64, and integers and booleans as they are."""
    if isinstance(tree, Tensor):
        return tree.double() if tree.is_floating_point() else tree
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)


def num_bytes(tree: Tree) -> int:
    """Return the size of the leaves' content in bytes."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(tree))


def one_tensor(tree: Tree, what: str = "inputs") -> Tensor:
    """Return a tree that is one tensor.

    Raises:
        DataError: it is several.
    """
    if isinstance(tree, Tensor):
        return tree
    parts = f"a dict of {', '.join(map(str, tree))}" if isinstance(tree, Mapping) else f"{len(tree)} parts"
    raise DataError(f"expected {what} that are one tensor, but got {parts}; use what takes several, or give one tensor")
