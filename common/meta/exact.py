"""Exact estimator: ν Hessian-vector products on batches of their own (equation (3) of the method)."""

from collections.abc import Mapping

from torch import Tensor

from nufed.common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from nufed.common.steps.steps import AnyBatch, Steps


def exact(steps: Steps[AnyBatch]) -> MetaGradient[AnyBatch]:
    """Return the estimator (I - αH(w_0; H_0)) ⋯ (I - αH(w_{ν-1}; H_{ν-1})) ∇f(w_ν; O).

    Keeps the ν inner points and one graph at a time, so that memory grows with ν by parameter vectors alone.
    """

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches[AnyBatch]) -> Estimate:
        path = [dict(params)]
        for number, batch in enumerate(batches.inner):
            path.append(steps.at(number).descend(path[-1], batch))
        outer_loss, direction = steps.value_and_gradient(path.pop(), batches.outer)
        outer_norm = steps.algebra.norm(direction)
        for number, batch in reversed(list(enumerate(batches.hessian))):
            direction = steps.at(number).pull_back(path.pop(), batch, direction)
        return Estimate(direction, outer_loss, outer_norm, Costs(len(batches.inner) + 1, len(batches.hessian)))

    return meta_gradient
