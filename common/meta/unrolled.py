"""Unrolled estimator: the exact gradient of ν mini-batch steps, from the graphs that those steps leave behind.

Coupled batches, H_j = I_j: unbiased for the loss after ν steps of *mini-batch* fine-tuning, biased for F_i itself.
Equal to autograd through the unrolled loop, but each step's graph stands alone and is freed as the sweep passes it.
"""

from collections.abc import Mapping

from torch import Tensor

from common.meta.differentiate import gradient_graph, gradient_graph_product, value_and_gradient
from common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from common.params import Params, add_scaled, norm
from common.task import LossFn


def unrolled(loss: LossFn, *, inner_lr: float) -> MetaGradient:
    """Return the estimator that keeps ν gradient graphs; `batches.hessian` is not read."""

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches) -> Estimate:
        graphs: list[tuple[Params, Params]] = []
        adapted = dict(params)
        for batch in batches.inner:
            graphs.append(gradient_graph(loss, adapted, batch))
            adapted = add_scaled(adapted, graphs[-1][1], -inner_lr)
        outer_loss, direction = value_and_gradient(loss, adapted, batches.outer)
        outer_norm, num_steps = norm(direction), len(graphs)
        while graphs:
            direction = add_scaled(direction, gradient_graph_product(*graphs.pop(), direction), -inner_lr)
        return Estimate(direction, outer_loss, outer_norm, Costs(num_steps + 1, num_steps))

    return meta_gradient
