"""A class for each position of a sequence: the next token, or a label of this one; padding is left out."""

from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.tasks.positions import ignored_number, mean_cross_entropies, smoothing_of
from nufed.common.tasks.targets import check_classes
from nufed.common.tasks.task import Task


def build(info: TaskInfo) -> Task:
    """Return the task for outputs [B, L, V] (scores) and targets [B, L] (class numbers).

    An example's loss is the mean over its own positions whose target is not `task.ignore-index`, so that long and
    short ones count the same.
    """
    num_dims, ignored, smoothing = len(info.target_shape), ignored_number(info), smoothing_of(info)

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return mean_cross_entropies(outputs, targets, num_dims, ignored=ignored, smoothing=smoothing)

    return Task(
        losses=losses,
        predictions=lambda outputs: outputs.softmax(-1),
        check_targets=lambda targets: check_classes(targets, info.num_outputs, info.target_shape, ignored),
        default_metrics=("accuracy", "perplexity"),
        primary_metric="accuracy",
        output_shape=(*info.target_shape, info.num_outputs),
        target_shape=info.target_shape,
        needs_float_targets=False,
    )
