"""Several labels, each of which an example may have: binary cross-entropy of logistic outputs."""

import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.tasks.positions import smoothing_of
from nufed.common.tasks.targets import check_labels
from nufed.common.tasks.task import Task


def build(info: TaskInfo) -> Task:
    """Return the task for outputs [B, K] (log odds) and targets [B, K] of 0 and 1; the loss is the mean over labels.

    With label smoothing ε a target is 1 - ε/2 or ε/2.
    """
    smoothing = smoothing_of(info)

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = targets * (1 - smoothing) + smoothing / 2 if smoothing else targets
        return F.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").mean(-1)

    return Task(
        losses=losses,
        predictions=lambda outputs: outputs.sigmoid(),
        check_targets=lambda targets: check_labels(targets, info.num_outputs),
        default_metrics=("auroc", "average-precision", "f1", "accuracy"),
        primary_metric="auroc",
        output_shape=(info.num_outputs,),
        target_shape=(info.num_outputs,),
        needs_float_targets=True,
    )
