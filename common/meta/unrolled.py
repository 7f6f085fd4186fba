"""Unrolled estimator: the exact gradient of ν mini-batch steps, from the graphs that those steps leave behind.

Coupled batches, H_j = I_j: unbiased for the loss after ν steps of *mini-batch* fine-tuning, biased for F_i itself.
Equal to autograd through the unrolled loop, but each step's graph stands alone and is freed as the sweep passes it.
A graph that is not kept is made again when its turn comes: one more forward and backward pass, the same bits.
"""

from collections.abc import Mapping

from torch import Tensor

from nufed.common.meta.meta_gradient import Costs, Estimate, MetaBatches, MetaGradient
from nufed.common.params import Params
from nufed.common.steps.kept_graphs import KeptGraphs, Memory
from nufed.common.steps.steps import AnyBatch, PullBack, Steps


def unrolled(steps: Steps[AnyBatch], *, memory: Memory = "fast") -> MetaGradient[AnyBatch]:
    """Return the estimator that keeps up to ν gradient graphs; `batches.hessian` is not read.

    Args:
        steps: the inner step.
        memory: `fast` keeps all graphs, `low` that of the last step alone, `auto` as many as fit in 256 MiB.
    """
    kept_graphs = KeptGraphs(memory)

    def meta_gradient(params: Mapping[str, Tensor], batches: MetaBatches[AnyBatch]) -> Estimate:
        num_steps = len(batches.inner)
        path: list[tuple[Params, PullBack | None]] = []
        adapted = dict(params)
        for number, batch in enumerate(batches.inner):
            moved, pull_back = kept_graphs.step(steps.at(number), adapted, batch, num_steps - 1 - number)
            path.append((adapted, pull_back))
            adapted = moved
        outer_loss, direction = steps.value_and_gradient(adapted, batches.outer)
        outer_norm = steps.algebra.norm(direction)
        for number, batch in reversed(list(enumerate(batches.inner))):
            point, pull_back = path.pop()
            direction = pull_back(direction) if pull_back else steps.at(number).pull_back(point, batch, direction)
        return Estimate(direction, outer_loss, outer_norm, Costs(num_steps + 1, num_steps))

    return meta_gradient
