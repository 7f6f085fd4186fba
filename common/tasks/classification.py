"""One class for each example: cross-entropy of the softmax."""

import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.tasks.positions import smoothing_of
from nufed.common.tasks.targets import check_classes
from nufed.common.tasks.task import Task


def build(info: TaskInfo) -> Task:
    """Return the task for outputs [B, K] (scores) and targets [B] (class numbers).

    With label smoothing ε (Szegedy et al., CVPR 2016) the target is 1 - ε for the class and ε / K for every class.
    """
    smoothing = smoothing_of(info)

    def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
        uniform = outputs.logsumexp(-1) - outputs.mean(-1)
        return (1 - smoothing) * _cross_entropies(outputs, targets) + smoothing * uniform

    return Task(
        losses=smoothed if smoothing else _cross_entropies,
        predictions=lambda outputs: outputs.softmax(-1),
        check_targets=lambda targets: check_classes(targets, info.num_outputs),
        default_metrics=("accuracy", "balanced-accuracy"),
        primary_metric="accuracy",
        output_shape=(info.num_outputs,),
        target_shape=(),
        needs_float_targets=False,
        by_hand=None if smoothing else "cross-entropy",
        mean=None if smoothing else F.cross_entropy,
    )


def _cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.logsumexp(-1) - outputs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
