"""Hessian-free estimator: each Hessian-vector product from two gradients (HF of Fallah et al., NeurIPS 2020).

Central difference along the current direction v, both ends on the same batch and the same dropout masks:

    H v ≈ (∇f(x + h v) - ∇f(x - h v)) / 2h,   h = δ/‖v‖ (normalized) or δ (absolute, as in the paper).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from common.examples import Batch
from common.meta.adapt import adapt
from common.meta.differentiate import gradient, value_and_gradient
from common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from common.params import Params, add_scaled, norm
from common.task import LossFn

TINY = 1e-30


def default_delta(dtype: torch.dtype) -> float:
    """Return the displacement that balances truncation against rounding: 1e-2 in float32, 1e-4 in float64."""
    return 1e-4 if dtype == torch.float64 else 1e-2


def central_difference(
    loss: LossFn, params: Mapping[str, Tensor], direction: Params, batch: Batch, step: float
) -> Params:
    """Return the central difference of the gradient along `direction`, an estimate of H v."""
    ahead = gradient(loss, add_scaled(params, direction, step), batch)
    behind = gradient(loss, add_scaled(params, direction, -step), batch)
    difference = add_scaled(ahead, behind, -1.0)
    return {name: tensor / (2 * step) for name, tensor in difference.items()}


def hessian_free(
    loss: LossFn, *, inner_lr: float, delta: float = 0.0, displacement: str = "normalized"
) -> MetaGradient:
    """Return the estimator: 3ν+1 gradients, no double backward.

    Args:
        loss: the client's loss.
        inner_lr: step size of the fine-tuning, α.
        delta: norm of the displacement (`normalized`) or factor of the direction (`absolute`); 0 takes the default.
        displacement: `normalized` or `absolute`.
    """

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches) -> Estimate:
        *path, adapted = adapt(loss, params, batches.inner, inner_lr)
        outer_loss, direction = value_and_gradient(loss, adapted, batches.outer)
        outer_norm = norm(direction)
        size = delta or default_delta(outer_loss.dtype)
        for point, batch in zip(reversed(path), reversed(batches.hessian), strict=True):
            step = size if displacement == "absolute" else size / max(norm(direction), TINY)
            product = central_difference(loss, point, direction, batch, step)
            direction = add_scaled(direction, product, -inner_lr)
        return Estimate(direction, outer_loss, outer_norm, Costs(3 * len(path) + 1))

    return meta_gradient
