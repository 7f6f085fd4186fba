"""Meta-SGD: the model and a step size for each of its parameters, learned together.

Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", arXiv 1707.09835, 2017, Algorithm 1:
it takes one step w - a ∘ ∇f(w), and descends on w and a by the same rate. Ours takes any number ν of steps with the
same a, and averages both over clients. The step sizes travel with the model as arrays of their own (`STEP_SIZE`).
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from nufed.common.errors import WireError
from nufed.common.examples import Batch
from nufed.common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from nufed.common.params import Params, norm
from nufed.common.steps.differentiate import gradient, hessian_vector_product, value_and_gradient
from nufed.common.steps.steps import AnyBatch, Derivatives
from nufed.common.task import LossFn

STEP_SIZE = "step-size/"
"""Before a parameter's name: the name of its step size, an array of the same shape."""

MOVED, SQUARED = STEP_SIZE + "moved/", STEP_SIZE + "squared/"
"""Before a parameter's name: those of the sums b and g that its step size √(b / g) is observed from (ARUBA)."""

_FALSE_SUMS = (
    "expected sums of squares with method.step-sizes=observed, but those of {!r} are not above 0: a client has sent "
    "what it cannot have observed; in a new run, set federation.aggregation to a robust rule, e.g. median"
)


def with_step_sizes(params: Mapping[str, Tensor], inner_lr: float) -> Params:
    """Return the parameters and, behind them, step sizes that all are `inner_lr`."""
    sizes = {STEP_SIZE + name: torch.full_like(tensor, inner_lr) for name, tensor in params.items()}
    return {**params, **sizes}


def split_step_sizes(params: Mapping[str, Tensor]) -> tuple[Params, Params]:
    """Return (parameters of the model, step sizes by the same names, learned or observed; empty if there are none).

    Raises:
        WireError: a sum that sizes are observed from is what no sum of squares can be: a client has sent false ones.
    """
    model = {name: tensor for name, tensor in params.items() if not name.startswith(STEP_SIZE)}
    learned = {name: params[STEP_SIZE + name] for name in model if STEP_SIZE + name in params}
    if learned or not any(name.startswith(MOVED) for name in params):
        return model, learned
    for name in model:
        if bool((params[MOVED + name] < 0).any() | (params[SQUARED + name] <= 0).any()):
            raise WireError(_FALSE_SUMS.format(name))
    return model, {name: (params[MOVED + name] / params[SQUARED + name]).sqrt() for name in model}


def adapt_by_sizes(
    loss: LossFn, params: Mapping[str, Tensor], sizes: Mapping[str, Tensor], batches: Iterable[Batch]
) -> Iterator[Params]:
    """Yield w_0 = `params`, then w_1, w_2, …: w - a ∘ ∇f(w; I) on each batch."""
    point = dict(params)
    yield point
    for batch in batches:
        point = minus_product(point, sizes, gradient(loss, point, batch))
        yield point


def meta_sgd(loss: LossFn, *, has_curvature: bool) -> MetaGradient:
    """Return `learned_sizes` of one client's loss, of the model's parameters alone."""

    def without_product(onto: Params, params: Mapping[str, Tensor], batch: Batch, direction: Params) -> Params:
        product = hessian_vector_product(loss, params, direction, batch)
        return {name: tensor - product[name] for name, tensor in onto.items()}

    derivatives = Derivatives(lambda params, batch: value_and_gradient(loss, params, batch), without_product, norm)
    return learned_sizes(derivatives, has_curvature=has_curvature)


def learned_sizes(of: Derivatives[AnyBatch], *, has_curvature: bool) -> MetaGradient[AnyBatch]:
    """Return the estimator of the gradient with respect to w and a.

    With v_ν = ∇f(w_ν; O) and v_j = v_{j+1} - ∇²f(w_j; H_j) (a ∘ v_{j+1}), it is v_0 for w, and for a

        -Σ_j ∇f(w_j; I_j) ∘ v_{j+1}.

    Args:
        of: derivatives of the loss.
        has_curvature: False leaves the Hessians out (first order: v_j = v_ν for all j).
    """

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches[AnyBatch]) -> Estimate:
        point, sizes = split_step_sizes(params)
        path: list[tuple[Params, Params]] = []
        for batch in batches.inner:
            path.append((point, of.value_and_gradient(point, batch)[1]))
            point = minus_product(point, sizes, path[-1][1])
        outer_loss, direction = of.value_and_gradient(point, batches.outer)
        outer_norm, num_steps = of.norm(direction), len(path)
        of_sizes = {name: torch.zeros_like(tensor) for name, tensor in sizes.items()}
        for batch in reversed(batches.hessian):
            point, inner_gradient = path.pop()
            of_sizes = minus_product(of_sizes, inner_gradient, direction)
            if has_curvature:
                scaled = {name: sizes[name] * tensor for name, tensor in direction.items()}
                direction = of.minus_product(direction, point, batch, scaled)
        joint = {**direction, **{STEP_SIZE + name: tensor for name, tensor in of_sizes.items()}}
        costs = Costs(num_steps + 1, num_steps if has_curvature else 0)
        return Estimate({name: joint[name] for name in params}, outer_loss, outer_norm, costs)

    return meta_gradient


def minus_product(params: Mapping[str, Tensor], left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Params:
    """Return params - left ∘ right."""
    with torch.no_grad():
        return {name: torch.addcmul(tensor, left[name], right[name], value=-1) for name, tensor in params.items()}
