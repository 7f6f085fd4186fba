"""Whether two results of one computation agree: to the bit, or up to rounding."""

from collections.abc import Mapping

import torch
from torch import Tensor

RELATIVE = {torch.float64: 1e-9}
"""Largest difference that rounding explains, relative to the largest element; 1e-4 for shorter types."""


def same(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors are equal, not-a-number being equal to itself."""
    return left.shape == right.shape and bool(((left == right) | (left.isnan() & right.isnan())).all())


def near(left: Tensor, right: Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding of their type."""
    if left.shape != right.shape:
        return False
    if same(left, right):
        return True
    return float((left - right).abs().max()) <= RELATIVE.get(left.dtype, 1e-4) * float(left.abs().max())


def gradients_near(left: Mapping[str, Tensor | None], right: Mapping[str, Tensor | None]) -> bool:
    """Return whether two gradients are equal up to rounding, each tensor on its own, and absent at the same places."""
    if any((left[name] is None) != (right[name] is None) for name in left):
        return False
    pairs = [(left[name], right[name]) for name in left if left[name] is not None]
    sizes = [float(other.norm()) for _, other in pairs if other is not None]
    # Some gradients are 0 but for rounding, as that of a key's bias in attention; the whole is what they are held to.
    whole = sum(size**2 for size in sizes) ** 0.5
    differences = [float((one - other).norm()) for one, other in pairs if one is not None and other is not None]
    return all(difference <= 1e-3 * size + 1e-5 * whole for difference, size in zip(differences, sizes, strict=True))
