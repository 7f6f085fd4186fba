"""A step size for training from how F curves where training goes, not from what bounds it everywhere.

Meta steps are taken with sizes that follow the curvature found on the way (Malitsky and Mishchenko, "Adaptive Gradient
Descent without Descent", ICML 2020, Algorithm 1): λ_k = min(√(1 + θ) λ_{k-1}, ‖Δw‖ / (2 ‖Δ∇F‖)), θ = λ_{k-1}/λ_{k-2}.
These
follow the sharpest place of the path; so several multiples of their median are tried as one size for all steps, and
that which lowers F most is taken. Here F is the mean over the measured clients with all of their examples, and its
gradient is exact.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nufed.common.errors import ModelError
from nufed.common.examples import Batch
from nufed.common.params import Params, add_scaled, norm
from nufed.common.task import LossFn

_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Sizes that are tried, in units of the median that the curvature gave."""
_FIRST = 1e-3
"""Of the first step, relative to max(1, ‖w‖)/‖∇F‖: short, so that the curvature at the start is what it finds."""


@dataclass(frozen=True)
class TrialSteps:
    """What meta steps from a point found.

    Attributes:
        local_lr: β, half of the size that lowered F most: a client's own loss curves more than the mean.
        smoothness: largest ‖Δ∇F‖/‖Δw‖ between two points of the path.
        before: F at the start.
        after: F after steps of that size.
        gradient: ‖∇F‖² at the start.
        num_steps: steps taken.
    """

    local_lr: float
    smoothness: float
    before: float
    after: float
    gradient: float
    num_steps: int


def trial_steps(
    loss: LossFn,
    point: Mapping[str, Tensor],
    clients: Sequence[Batch],
    inner_steps: tuple[int, float],
    num_steps: int = 16,
) -> TrialSteps:
    """Return the sizes that meta steps on the clients' mean loss after ν steps of size α take.

    Args:
        loss: mean over the examples of a batch.
        point: where to start.
        clients: each client's examples.
        inner_steps: ν and α.
        num_steps: of the path, 2 or more.

    Raises:
        ModelError: F or its gradient is not finite on the way: α is too large.
    """
    here, (num_inner_steps, inner_lr) = dict(point), inner_steps
    value, gradient = meta_gradient(loss, here, clients, num_inner_steps, inner_lr)
    before, steepness = value, norm(gradient) ** 2
    size = _FIRST * max(1.0, norm(here)) / max(norm(gradient), 1e-30)
    growth, smoothness, sizes = math.inf, 0.0, list[float]()
    for _ in range(num_steps):
        there = add_scaled(here, gradient, -size)
        value, following = meta_gradient(loss, there, clients, num_inner_steps, inner_lr)
        moved, turned = size * norm(gradient), norm(add_scaled(following, gradient, -1.0))
        if moved == 0 or turned == 0:
            break
        smoothness = max(smoothness, turned / moved)
        following_size = min(math.sqrt(1 + growth) * size, moved / (2 * turned))
        here, gradient = there, following
        growth, size = following_size / size, following_size
        sizes.append(size)
    if not sizes:
        return TrialSteps(math.inf, smoothness, before, value, steepness, 0)
    later = sorted(sizes[len(sizes) // 2 :])
    ends = {}
    for factor in _FACTORS:
        size = factor * later[len(later) // 2]
        ends[size] = _end(loss, point, clients, inner_steps, (size, num_steps))
    best = min(ends, key=lambda each: ends[each])
    return TrialSteps(best / 2, smoothness, before, ends[best], steepness, num_steps)


def _end(
    loss: LossFn,
    point: Mapping[str, Tensor],
    clients: Sequence[Batch],
    inner_steps: tuple[int, float],
    steps: tuple[float, int],
) -> float:
    """Return F after steps of one size; inf if it leaves the finite numbers."""
    here, (size, number) = dict(point), steps
    try:
        for _ in range(number):
            here = add_scaled(here, meta_gradient(loss, here, clients, *inner_steps)[1], -size)
        return meta_gradient(loss, here, clients, *inner_steps)[0]
    except ModelError:
        return math.inf


def meta_gradient(
    loss: LossFn, params: Mapping[str, Tensor], clients: Sequence[Batch], num_inner_steps: int, inner_lr: float
) -> tuple[float, Params]:
    """Return F and its gradient: the mean over clients of the loss after ν full-batch steps of size α.

    Raises:
        ModelError: one of them is not finite.
    """
    total, value = {name: torch.zeros_like(each) for name, each in params.items()}, 0.0
    for batch in clients:
        start = {name: each.detach().requires_grad_() for name, each in params.items()}
        adapted: dict[str, Tensor] = dict(start)
        for _ in range(num_inner_steps):
            slopes = torch.autograd.grad(loss(adapted, batch), list(adapted.values()), create_graph=True)
            adapted = {name: w - inner_lr * g for (name, w), g in zip(adapted.items(), slopes, strict=True)}
        final = loss(adapted, batch)
        for name, slope in zip(start, torch.autograd.grad(final, list(start.values())), strict=True):
            total[name] += slope / len(clients)
        value += float(final.detach()) / len(clients)
    if not (math.isfinite(value) and math.isfinite(norm(total))):
        raise ModelError(
            f"expected a finite loss after {num_inner_steps} inner steps of size {inner_lr:.3g}, but it is not; lower "
            "--inner-lr"
        )
    return value, total
