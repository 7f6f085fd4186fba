"""Inner steps that are computed as they are called: by hand where that is known, else by autograd."""

from nufed.common.steps.dense_steps import dense_steps
from nufed.common.steps.steps import Steps, autograd_steps
from nufed.common.task import LossFn


def eager_steps(loss: LossFn, inner_lr: float) -> Steps:
    """Return the steps by hand for fully connected networks, and by autograd for all other losses."""
    return dense_steps(loss, inner_lr) or autograd_steps(loss, inner_lr)
