"""Inner steps that are computed as they are called: by hand where that is known, else by autograd."""

from common.meta.dense_steps import dense_steps
from common.meta.steps import Steps, autograd_steps
from common.task import LossFn


def eager_steps(loss: LossFn, inner_lr: float) -> Steps:
    """Return the steps by hand for fully connected networks, and by autograd for all other losses."""
    return dense_steps(loss, inner_lr) or autograd_steps(loss, inner_lr)
