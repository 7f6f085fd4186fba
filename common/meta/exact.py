"""Exact estimator: ν Hessian-vector products on batches of their own (equation (3) of the method)."""

from collections.abc import Mapping

from torch import Tensor

from common.meta.adapt import adapt
from common.meta.differentiate import hessian_vector_product, value_and_gradient
from common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from common.params import add_scaled, norm
from common.task import LossFn


def exact(loss: LossFn, *, inner_lr: float) -> MetaGradient:
    """Return the estimator (I - αH(w_0; H_0)) ⋯ (I - αH(w_{ν-1}; H_{ν-1})) ∇f(w_ν; O).

    Keeps the ν inner points and one graph at a time, so that memory grows with ν by parameter vectors alone.
    """

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches) -> Estimate:
        *path, adapted = adapt(loss, params, batches.inner, inner_lr)
        outer_loss, direction = value_and_gradient(loss, adapted, batches.outer)
        outer_norm = norm(direction)
        for point, batch in zip(reversed(path), reversed(batches.hessian), strict=True):
            product = hessian_vector_product(loss, point, direction, batch)
            direction = add_scaled(direction, product, -inner_lr)
        return Estimate(direction, outer_loss, outer_norm, Costs(len(path) + 1, len(path)))

    return meta_gradient
