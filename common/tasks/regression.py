"""Values for each example: half the squared error, summed over the values."""

from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.tasks.targets import check_values
from nufed.common.tasks.task import Task


def build(info: TaskInfo) -> Task:
    """Return the task for outputs and targets [B, K]."""
    return Task(
        losses=_half_squares,
        predictions=lambda outputs: outputs,
        check_targets=lambda targets: check_values(targets, info.num_outputs),
        default_metrics=(),
        primary_metric="loss",
        output_shape=(info.num_outputs,),
        target_shape=(info.num_outputs,),
        needs_float_targets=True,
        by_hand="squared-error",
        mean=lambda outputs, targets: 0.5 * (outputs - targets).square().flatten(1).sum(1).mean(),
    )


def _half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(-1)
