"""Hessian-free estimator: each Hessian-vector product from two gradients (HF of Fallah et al., NeurIPS 2020).

A difference along the current direction v, both ends on the same batch and the same dropout masks:

    central:  H v ≈ (∇f(x + h v) - ∇f(x - h v)) / 2h        forward:  H v ≈ (∇f(x + h v) - ∇f(x)) / h

with h ‖v‖ = δ (normalized), δ ‖v‖ (absolute, as in the paper) or δ (1 + ‖x‖) (relative). A kink of the loss that lies
between the ends adds its jump divided by h, so that ReLU or max-pooling can spoil the product (docs/performance.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from nufed.common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from nufed.common.params import Params
from nufed.common.steps.cautions import caution
from nufed.common.steps.steps import Algebra, AnyBatch, Size, Steps
from nufed.common.task import LossFn, ModelLoss

KINKED = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Threshold),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)

Displacement = Literal["normalized", "absolute", "relative"]


@dataclass(frozen=True)
class Difference:
    """How a Hessian-vector product is taken from gradients.

    Attributes:
        delta: size of the displacement, δ; 0 takes the default.
        displacement: what δ is measured in.
        sides: `central` or `forward`.
        dtype: `same` as the parameters, or `float64` for the whole estimate, which is rounded at the end.
    """

    delta: float = 0.0
    displacement: Displacement = "normalized"
    sides: Literal["central", "forward"] = "central"
    dtype: Literal["same", "float64"] = "same"


def default_delta(dtype: torch.dtype, displacement: str = "normalized") -> float:
    """Return the δ that balances truncation against rounding, as measured by benchmarks/hessian_free_error.py."""
    if displacement == "relative":
        return 1e-7 if dtype == torch.float64 else 1e-4
    return 1e-5 if dtype == torch.float64 else 1e-3


def hessian_free(steps: Steps[AnyBatch], *, difference: Difference = Difference()) -> MetaGradient[AnyBatch]:
    """Return the estimator: no double backward; 3ν+1 gradients, or 2ν+1 forward where batches are coupled."""

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches[AnyBatch]) -> Estimate:
        known = difference.sides == "forward" and batches.hessian is batches.inner
        path: list[tuple[Params, Params | None]] = []
        adapted = dict(params)
        for number, batch in enumerate(batches.inner):
            moved, gradient = steps.at(number).descend_with_gradient(adapted, batch)
            path.append((adapted, gradient() if known else None))
            adapted = moved
        outer_loss, direction = steps.value_and_gradient(adapted, batches.outer)
        outer_norm, num_gradients = steps.algebra.norm(direction), len(path) + 1
        for number, batch in reversed(list(enumerate(batches.hessian))):
            direction = _contracted(steps.at(number), path.pop(), direction, batch, difference)
            num_gradients += 1 if known else 2
        return Estimate(direction, outer_loss, outer_norm, Costs(num_gradients))

    return _in_double(meta_gradient) if difference.dtype == "float64" else meta_gradient


def _contracted(
    steps: Steps[AnyBatch],
    here: tuple[Params, Params | None],
    direction: Params,
    batch: AnyBatch,
    difference: Difference,
) -> Params:
    """Return an estimate of (I - α H) v; `here` is the point and, if known, its gradient."""
    point, gradient = here
    step = _step(steps.algebra, point, direction, difference)
    ahead = steps.value_and_gradient(steps.algebra.add_scaled(point, direction, step), batch)[1]
    if difference.sides == "central":
        behind = steps.value_and_gradient(steps.algebra.add_scaled(point, direction, -step), batch)[1]
    else:
        behind = steps.value_and_gradient(point, batch)[1] if gradient is None else gradient
    width = 2 * step if difference.sides == "central" else step
    return steps.algebra.subtract_quotient(direction, ahead, behind, steps.inner_lr, width)


def _step(algebra: Algebra, point: Params, direction: Params, difference: Difference) -> Size:
    """Return h, the factor of v."""
    dtype = next(iter(point.values())).dtype
    delta = difference.delta or default_delta(dtype, difference.displacement)
    if difference.displacement == "absolute":
        return delta
    scale = 1 + algebra.norm(point) if difference.displacement == "relative" else 1.0
    return algebra.ratio(delta * scale, algebra.norm(direction))


def _in_double(meta_gradient: MetaGradient[AnyBatch]) -> MetaGradient[AnyBatch]:
    """Return the estimator computed in float64, whatever comes, its gradient rounded to what came."""

    def in_double(params: Mapping[str, Tensor], batches: MetaBatches[AnyBatch]) -> Estimate:
        inner = tuple(batch.double() for batch in batches.inner)
        coupled = batches.hessian is batches.inner
        hessian = inner if coupled else tuple(batch.double() for batch in batches.hessian)
        double = {name: tensor.double() for name, tensor in params.items()}
        estimate = meta_gradient(double, MetaBatches(inner, batches.outer.double(), hessian))
        gradient = {name: tensor.to(params[name].dtype) for name, tensor in estimate.gradient.items()}
        return replace(estimate, gradient=gradient)

    return in_double


def caution_of_kinks(loss: LossFn, difference: Difference) -> None:
    """Warn once of float32 differences across the kinks of a model's layers."""
    if difference.dtype == "float64" or not isinstance(loss, ModelLoss):
        return
    if all(tensor.dtype == torch.float64 for tensor in loss.model.parameters()):
        return
    modules = {type(module).__name__ for module in loss.model.modules() if isinstance(module, KINKED)}
    # A function that no module of its name accounts for, such as torch.relu in a forward pass of one's own.
    known = " ".join(modules).lower() + (" hardtanh" if "ReLU6" in modules else "")
    functions = {name for name in loss.traits.kinks if name.replace("_", "") not in known}
    if kinked := sorted(modules) + sorted(functions):
        caution(
            f"method.estimator=hessian-free: float32 differences across the kinks of {', '.join(kinked)} can be wrong "
            "by more than the whole second-order correction. Use method.estimator=exact, a smooth model, or "
            "method.hessian-free-dtype=float64 with method.hessian-free-displacement=relative."
        )
