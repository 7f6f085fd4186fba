"""Fine-tuning: w_{j+1} = w_j - α ∇f(w_j; I_j), equation (1) of the method."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from nufed.common.examples import Batch
from nufed.common.meta.schedule import size_at
from nufed.common.params import Params
from nufed.common.steps.eager_steps import eager_steps
from nufed.common.task import LossFn


def adapt(
    loss: LossFn, params: Mapping[str, Tensor], batches: Iterable[Batch], inner_lr: float | Sequence[float]
) -> Iterator[Params]:
    """Yield w_0 = `params`, then w_1, w_2, …: one plain gradient step on each batch.

    Args:
        loss: the client's loss.
        params: starting point; not changed.
        batches: one per step, read as the steps are taken.
        inner_lr: step size α, or α_0, α_1, …, of which the last is that of all further steps.
    """
    sizes = [inner_lr] if isinstance(inner_lr, int | float) else list(inner_lr)
    made, point = {size: eager_steps(loss, size) for size in sizes}, dict(params)
    yield point
    for number, batch in enumerate(batches):
        point = made[size_at(sizes, number)].descend(point, batch)
        yield point
