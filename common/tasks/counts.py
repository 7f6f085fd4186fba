"""Counts: half of Poisson's deviance, outputs being the logarithms of the rates."""

from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.tasks.targets import check_counts
from nufed.common.tasks.task import Task


def build(info: TaskInfo) -> Task:
    """Return the task for outputs [B, K] (log rates) and targets [B, K]; an example's loss is the counts' mean."""
    return Task(
        losses=_poisson,
        predictions=lambda outputs: outputs.exp(),
        check_targets=lambda targets: check_counts(targets, info.num_outputs),
        default_metrics=("deviance", "mae", "rmse"),
        primary_metric="deviance",
        output_shape=(info.num_outputs,),
        target_shape=(info.num_outputs,),
        needs_float_targets=True,
    )


def _poisson(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return λ - y log λ - (y - y log y): Poisson's negative log-likelihood, less what no parameter changes.

    So it is 0 where the rate is the count, and no less anywhere.
    """
    return (outputs.exp() - targets * outputs - targets + targets.xlogy(targets)).mean(-1)
