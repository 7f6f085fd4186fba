"""The four estimators for m clients at once: the same lines as for one client, on stacked parameters.

`exact`, `unrolled`, `first-order` and `hessian-free` stand here once more because a norm is now one number per client
and a product of factors is one batched operation; the tests hold each of them against its one-client counterpart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config import MethodConfig
from common.errors import ConfigError, nearest_match_hint
from common.meta.cohort_kernel import CohortBatch, CohortKernel, CohortTape, Stacked, add_scaled_each, norms
from common.meta.hessian_free import TINY, default_delta
from common.meta.meta_gradient import Costs
from common.params import Params, add_scaled


@dataclass(frozen=True)
class CohortBatches:
    """The batches of one meta step of m clients; see `MetaBatches`."""

    inner: tuple[CohortBatch, ...]
    outer: CohortBatch
    hessian: tuple[CohortBatch, ...]


@dataclass(frozen=True)
class CohortEstimate:
    """m meta-gradients.

    Attributes:
        gradient: estimates of ∇F_i(w_i), stacked.
        outer_losses: f_i(w_ν; O), [m].
        growths: ‖∇F_i(w_i)‖ / ‖∇f_i(w_ν; O)‖, [m]; 1 where the divisor is 0 or no number.
        costs: evaluations made for each client.
    """

    gradient: Params
    outer_losses: Tensor
    growths: Tensor
    costs: Costs


CohortMetaGradient = Callable[[CohortKernel, Stacked, CohortBatches, MethodConfig], CohortEstimate]


def find_cohort_estimator(name: str) -> CohortMetaGradient:
    """Return the batched form of a registered estimator.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in COHORT_ESTIMATORS:
        hint = nearest_match_hint(name, COHORT_ESTIMATORS)
        raise ConfigError(f"Estimator {name!r} (method.estimator) has no batched form; use --engine local.{hint}")
    return COHORT_ESTIMATORS[name]


def _exact(kernel: CohortKernel, params: Stacked, batches: CohortBatches, method: MethodConfig) -> CohortEstimate:
    path = _descent(kernel, params, batches.inner, method.inner_lr)
    outer = kernel.tape(path.pop(), batches.outer, curvature=False)
    direction, num_steps = outer.gradient(), len(path)
    outer_norms = norms(direction)
    for batch in reversed(batches.hessian):
        direction = kernel.tape(path.pop(), batch, curvature=True).contract(direction, method.inner_lr)
    return CohortEstimate(direction, outer.losses(), _growths(direction, outer_norms), Costs(num_steps + 1, num_steps))


def _unrolled(kernel: CohortKernel, params: Stacked, batches: CohortBatches, method: MethodConfig) -> CohortEstimate:
    tapes: list[CohortTape] = []
    adapted = params
    for batch in batches.inner:
        tapes.append(kernel.tape(adapted, batch, curvature=True))
        adapted = tapes[-1].descend(method.inner_lr)
    outer = kernel.tape(adapted, batches.outer, curvature=False)
    direction, num_steps = outer.gradient(), len(tapes)
    outer_norms = norms(direction)
    while tapes:
        direction = tapes.pop().contract(direction, method.inner_lr)
    return CohortEstimate(direction, outer.losses(), _growths(direction, outer_norms), Costs(num_steps + 1, num_steps))


def _first_order(kernel: CohortKernel, params: Stacked, batches: CohortBatches, method: MethodConfig) -> CohortEstimate:
    adapted = params
    for batch in batches.inner:
        adapted = kernel.tape(adapted, batch, curvature=False).descend(method.inner_lr)
    outer = kernel.tape(adapted, batches.outer, curvature=False)
    losses = outer.losses()
    return CohortEstimate(outer.gradient(), losses, torch.ones_like(losses), Costs(len(batches.inner) + 1))


def _hessian_free(
    kernel: CohortKernel, params: Stacked, batches: CohortBatches, method: MethodConfig
) -> CohortEstimate:
    path = _descent(kernel, params, batches.inner, method.inner_lr)
    outer = kernel.tape(path.pop(), batches.outer, curvature=False)
    direction, losses, num_steps = outer.gradient(), outer.losses(), len(path)
    outer_norms = norms(direction)
    size = method.hessian_free_delta or default_delta(losses.dtype)
    for batch in reversed(batches.hessian):
        if method.hessian_free_displacement == "absolute":
            steps = torch.full_like(losses, size)
        else:
            steps = size / norms(direction).clamp(min=TINY)
        point = path.pop()
        ahead, behind = (
            kernel.tape(add_scaled_each(point, direction, end), batch, curvature=False).gradient()
            for end in (steps, -steps)
        )
        difference = add_scaled(ahead, behind, -1.0)
        direction = add_scaled_each(direction, difference, -method.inner_lr / (2 * steps))
    return CohortEstimate(direction, losses, _growths(direction, outer_norms), Costs(3 * num_steps + 1))


def _growths(gradient: Stacked, outer_norms: Tensor) -> Tensor:
    return torch.where(outer_norms > 0, norms(gradient) / outer_norms, torch.ones_like(outer_norms))


def _descent(
    kernel: CohortKernel, params: Stacked, batches: tuple[CohortBatch, ...], step_size: float
) -> list[Stacked]:
    """Return w_0, …, w_ν."""
    path = [params]
    for batch in batches:
        path.append(kernel.tape(path[-1], batch, curvature=False).descend(step_size))
    return path


COHORT_ESTIMATORS: Mapping[str, CohortMetaGradient] = {
    "exact": _exact,
    "unrolled": _unrolled,
    "first-order": _first_order,
    "hessian-free": _hessian_free,
}
