"""Random directions and points near a model's parameters, for models of any size.

Noise repeats itself after a prime number of elements: numbers drawn one by one would take longer than a forward pass.
"""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from nufed.common.params import Params
from nufed.common.rng import torch_generator

PERIOD = 65_521
MOVE = 0.01


def moved(point: Mapping[str, Tensor]) -> Params:
    """Return a point at about one percent from the one given, where no tensor is 0 throughout."""
    return {
        name: torch.add(tensor, noise, alpha=MOVE) if bool(tensor.any()) else MOVE * noise.abs()
        for (name, tensor), noise in zip(point.items(), direction_at(point, "point").values(), strict=True)
    }


def direction_at(point: Mapping[str, Tensor], purpose: str = "v") -> Params:
    """Return a random direction, in each tensor as large as the tensor itself, of size 1 where that is 0."""
    found: Params = {}
    start = 0
    for name, tensor in point.items():
        found[name] = _noise(purpose, start, tensor).mul_(_size(tensor))
        start += tensor.numel()
    return found


def _noise(purpose: str, start: int, like: Tensor) -> Tensor:
    block, count = _block(purpose), like.numel()
    start %= PERIOD
    repeated = block if start + count <= PERIOD else block.repeat(1 + (start + count) // PERIOD)
    return repeated[start : start + count].reshape(like.shape).to(like, copy=True)


@lru_cache(maxsize=16)
def _block(purpose: str) -> Tensor:
    """Return standard normal noise [PERIOD] in float32; not to be changed."""
    return torch.randn(PERIOD, generator=torch_generator(0, "near", purpose))


def _size(tensor: Tensor) -> float:
    """Return the root mean square of a tensor, 1 where that is 0."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) / max(1, tensor.numel()) ** 0.5 or 1.0
