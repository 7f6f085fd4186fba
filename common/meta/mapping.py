"""Whether the examples of a batch can be computed together, each by itself."""

import torch

from nufed.common.errors import ModelError
from nufed.common.examples import Examples
from nufed.common.meta.example_terms import SampledBatch, gradient_sum, product_sum
from nufed.common.models.agreement import gradients_near
from nufed.common.models.nearby import direction_at
from nufed.common.params import Params
from nufed.common.steps.dense_layers import dense_layers
from nufed.common.task import ModelLoss

NUM_EXAMPLES = 2

_FAR = 1e9
"""A clipping length that nothing reaches."""


def maps_examples(loss: ModelLoss, params: Params, support: Examples, *, twice: bool) -> bool:
    """Return whether `torch.func.vmap` gives each example of a model's loss the term that it has alone.

    Fully connected networks are known to. Others are tried on a few examples; what fails, as a layer that reads values
    (`if x.sum() > 0`) or has hooks does, is computed one example after another.

    Args:
        loss: the client's loss.
        params: a point.
        support: where examples are taken from.
        twice: whether products are computed beside gradients.
    """
    if dense_layers(loss.model, loss.task) or not len(support):
        return True
    rows = torch.arange(min(NUM_EXAMPLES, len(support)), device=support.device)
    batch, along = SampledBatch(support.take(rows).as_batch(), None, 1.0), direction_at(params)

    def terms(*, mapped: bool) -> list[Params]:
        sums = [gradient_sum(loss, params, batch, _FAR, mapped=mapped).total]
        return sums + ([product_sum(loss, params, along, batch, _FAR, mapped=mapped).total] if twice else [])

    try:
        together, alone = terms(mapped=True), terms(mapped=False)
    except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError, ModelError):
        return False
    return all(gradients_near(one, other) for one, other in zip(together, alone, strict=True))
