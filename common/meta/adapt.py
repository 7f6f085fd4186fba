"""Fine-tuning: w_{j+1} = w_j - α ∇f(w_j; I_j), equation (1) of the method."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from nufed.common.examples import Batch
from nufed.common.params import Params
from nufed.common.steps.eager_steps import eager_steps
from nufed.common.task import LossFn


def adapt(loss: LossFn, params: Mapping[str, Tensor], batches: Iterable[Batch], inner_lr: float) -> Iterator[Params]:
    """Yield w_0 = `params`, then w_1, w_2, …: one plain gradient step on each batch.

    Args:
        loss: the client's loss.
        params: starting point; not changed.
        batches: one per step, read as the steps are taken.
        inner_lr: step size, α.
    """
    steps, point = eager_steps(loss, inner_lr), dict(params)
    yield point
    for batch in batches:
        point = steps.descend(point, batch)
        yield point
