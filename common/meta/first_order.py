"""First-order estimator: the gradient after ν steps, Hessians dropped (FO-MAML of Finn et al., ICML 2017)."""

from collections.abc import Mapping

from torch import Tensor

from nufed.common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from nufed.common.steps.steps import AnyBatch, Steps


def first_order(steps: Steps[AnyBatch]) -> MetaGradient[AnyBatch]:
    """Return the estimator ∇f(w_ν; O): ν+1 gradients, biased by O(α) whatever the batch size."""

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches[AnyBatch]) -> Estimate:
        adapted = dict(params)
        for number, batch in enumerate(batches.inner):
            adapted = steps.at(number).descend(adapted, batch)
        outer_loss, direction = steps.value_and_gradient(adapted, batches.outer)
        return Estimate(direction, outer_loss, steps.algebra.norm(direction), Costs(len(batches.inner) + 1))

    return meta_gradient
