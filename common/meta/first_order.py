"""First-order estimator: the gradient after ν steps, Hessians dropped (FO-MAML of Finn et al., ICML 2017)."""

from collections.abc import Mapping

from torch import Tensor

from common.meta.adapt import adapt
from common.meta.differentiate import value_and_gradient
from common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from common.params import norm
from common.task import LossFn


def first_order(loss: LossFn, *, inner_lr: float) -> MetaGradient:
    """Return the estimator ∇f(w_ν; O): ν+1 gradients, biased by O(α) whatever the batch size."""

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches) -> Estimate:
        *_, adapted = adapt(loss, params, batches.inner, inner_lr)
        outer_loss, direction = value_and_gradient(loss, adapted, batches.outer)
        return Estimate(direction, outer_loss, norm(direction), Costs(len(batches.inner) + 1))

    return meta_gradient
