"""What a client would get without any model: the same answer to every example, taken from its support split."""

import torch
from torch import Tensor

from nufed.common.examples import TaskInfo

_TINY = 1e-12  # a rate of nothing, of which there is a logarithm


def constant_outputs(task: TaskInfo, targets: Tensor, ignored: int | None, *, median: bool = False) -> Tensor | None:
    """Return one example's outputs that say what is commonest among targets; None for a task of one's own.

    Scores of classes, labels and tokens are logarithms of their shares, with one example more of each: the largest is
    that of the majority, and no probability is 0.

    Args:
        task: what the targets are.
        targets: [N, ...] of the support split, N ≥ 1.
        ignored: the target that does not count; None for none.
        median: give the median of values and counts, which is best in absolute error, and not their mean.
    """
    kind: str = task.kind
    if kind == "classification":
        return _log_shares(targets, task.num_outputs)
    if kind == "multi-label":
        chance = (targets.double().sum(0) + 1) / (len(targets) + 2)
        return chance.logit()
    if kind == "regression":
        return _middle(targets, median=median)
    if kind == "counts":
        return _middle(targets, median=median).clamp(min=_TINY).log()
    if kind not in ("segmentation", "tokens"):
        return None
    shares = _log_shares(targets[targets != ignored], task.num_outputs)
    shape = targets.shape[1:]
    if kind == "tokens":
        return shares.expand(*shape, -1)
    return shares.reshape(-1, *[1] * len(shape)).expand(-1, *shape)


def _log_shares(targets: Tensor, num_classes: int) -> Tensor:
    counts = torch.bincount(targets.flatten(), minlength=num_classes).double() + 1
    return (counts / counts.sum()).log()


def _middle(targets: Tensor, *, median: bool) -> Tensor:
    values = targets.double()
    return values.quantile(0.5, 0) if median else values.mean(0)
