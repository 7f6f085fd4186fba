"""One class for each example: cross-entropy of the softmax."""

import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.tasks.targets import check_classes
from nufed.common.tasks.task import Task


def build(info: TaskInfo) -> Task:
    """Return the task for outputs [B, K] (scores) and targets [B] (class numbers)."""
    return Task(
        losses=_cross_entropies,
        predictions=lambda outputs: outputs.softmax(-1),
        check_targets=lambda targets: check_classes(targets, info.num_outputs),
        default_metrics=("accuracy",),
        primary_metric="accuracy",
        output_shape=(info.num_outputs,),
        target_shape=(),
        needs_float_targets=False,
        by_hand="cross-entropy",
        mean=F.cross_entropy,
    )


def _cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.logsumexp(-1) - outputs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
