"""The four estimators for m clients at once: the same lines as for one client, on stacked parameters.

`exact`, `unrolled`, `first-order` and `hessian-free` stand here once more because a norm is now one number per client
and a product of factors is one batched operation; the tests hold each of them against its one-client counterpart.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError, nearest_match_hint
from nufed.common.meta.hessian_free import TINY, default_delta
from nufed.common.meta.meta_gradient import Costs
from nufed.common.params import Params, add_scaled
from nufed.common.steps.cohort_kernel import CohortBatch, CohortKernel, CohortTape, Stacked, add_scaled_each, norms


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
    if method.hessian_free_dtype == "float64":
        return _in_double(kernel, params, batches, method)
    known = method.hessian_free_difference == "forward" and batches.hessian is batches.inner
    path: list[tuple[Stacked, Params | None]] = []
    adapted = params
    for batch in batches.inner:
        tape = kernel.tape(adapted, batch, curvature=False)
        path.append((adapted, tape.gradient() if known else None))
        adapted = tape.descend(method.inner_lr)
    outer = kernel.tape(adapted, batches.outer, curvature=False)
    direction, losses, num_gradients = outer.gradient(), outer.losses(), len(path) + 1
    outer_norms = norms(direction)
    for batch in reversed(batches.hessian):
        point, gradient = path.pop()
        steps = _displacements(point, direction, method)
        ahead, behind = _ends(kernel, (point, gradient), batch, direction, steps, method)
        widths = 2 * steps if method.hessian_free_difference == "central" else steps
        direction = add_scaled_each(direction, add_scaled(ahead, behind, -1.0), -method.inner_lr / widths)
        num_gradients += 1 if known else 2
    return CohortEstimate(direction, losses, _growths(direction, outer_norms), Costs(num_gradients))


def _ends(  # noqa: PLR0913 - one difference, in its parts
    kernel: CohortKernel,
    here: tuple[Stacked, Params | None],
    batch: CohortBatch,
    direction: Stacked,
    steps: Tensor,
    method: MethodConfig,
) -> tuple[Params, Params]:
    """Return the gradients at both ends of the difference."""
    point, gradient = here
    ahead = kernel.tape(add_scaled_each(point, direction, steps), batch, curvature=False).gradient()
    if gradient is not None:
        return ahead, gradient
    end = add_scaled_each(point, direction, -steps) if method.hessian_free_difference == "central" else point
    return ahead, kernel.tape(end, batch, curvature=False).gradient()


def _displacements(point: Stacked, direction: Stacked, method: MethodConfig) -> Tensor:
    """Return h, the factor of v, for each client."""
    sizes = norms(direction)
    kind = method.hessian_free_displacement
    delta = method.hessian_free_delta or default_delta(sizes.dtype, kind)
    if kind == "absolute":
        return torch.full_like(sizes, delta)
    scales = 1 + norms(point) if kind == "relative" else torch.ones_like(sizes)
    return delta * scales / sizes.clamp(min=TINY)


def _in_double(kernel: CohortKernel, params: Stacked, batches: CohortBatches, method: MethodConfig) -> CohortEstimate:
    """Return the estimate computed in float64, its gradient rounded to the type of the parameters."""

    def wide(batch: CohortBatch) -> CohortBatch:
        parts = (batch.inputs, batch.targets, batch.weights)
        inputs, targets, weights = (part.double() if part.is_floating_point() else part for part in parts)
        sizes = weights.count_nonzero(1).unsqueeze(1)  # in float32, 1/B is rounded
        return CohortBatch(inputs, targets, (weights > 0).double() / sizes)

    inner = tuple(map(wide, batches.inner))
    hessian = inner if batches.hessian is batches.inner else tuple(map(wide, batches.hessian))
    double = {name: tensor.double() for name, tensor in params.items()}
    same = method.model_copy(update={"hessian_free_dtype": "same"})
    estimate = _hessian_free(kernel, double, CohortBatches(inner, wide(batches.outer), hessian), same)
    gradient = {name: tensor.to(params[name].dtype) for name, tensor in estimate.gradient.items()}
    return replace(estimate, gradient=gradient)


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
