"""Arithmetic on named tensors: `Params` is a model's trained parameters by name, never changed in place.

A parameter is trained if it requires a gradient. All others are *frozen*: they stay in the module, which all copies of
the parameters share, and are neither differentiated, nor sent, nor written down (nufed.common.models.frozen).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nufed.common.rng import GLOBAL_STATE

Params = dict[str, Tensor]


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the model's own parameters that require gradients, by name, in the model's order.

    Another thread may be computing with other parameters in their places (`nufed.common.task.with_params`): it is
    waited for.
    """
    with GLOBAL_STATE:
        return {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}


def model_params(model: nn.Module) -> Params:
    """Return detached copies of the model's trained parameters by name."""
    return {name: tensor.detach().clone() for name, tensor in trained_parameters(model).items()}


def leaves(params: Mapping[str, Tensor]) -> Params:
    """Return tensors that share storage with `params` and that gradients can be taken of."""
    return {name: tensor.detach().requires_grad_(True) for name, tensor in params.items()}


def add_scaled(params: Mapping[str, Tensor], direction: Mapping[str, Tensor], scale: float) -> Params:
    """Return `params + scale * direction`, detached."""
    with torch.no_grad():
        moved = torch._foreach_add(list(params.values()), [direction[name] for name in params], alpha=scale)
    return dict(zip(params, moved, strict=True))


def norm(params: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm over all tensors together."""
    parts = torch._foreach_norm(list(params.values()))
    return float(torch.linalg.vector_norm(torch.stack(parts)))


def clipped(direction: Params, max_norm: float) -> Params:
    """Return the direction, scaled down to the length `max_norm` if it is longer; what is no number stays none."""
    length = norm(direction)
    if not length > max_norm:
        return direction
    scaled = torch._foreach_mul(list(direction.values()), max_norm / length)
    return dict(zip(direction, scaled, strict=True))


def largest_magnitude(tensor: Tensor) -> float:
    """Return max|x|, NaN if any element is NaN, 0 for an empty tensor; without a temporary of the tensor's size."""
    if tensor.numel() == 0:
        return 0.0
    low, high = (float(end) for end in tensor.aminmax())
    return math.nan if math.isnan(low) else max(-low, high)


def num_bytes(params: Mapping[str, Tensor]) -> int:
    """Return the size of the tensors' content in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in params.values())
