"""Cross-entropy of classes at several positions of an example: pixels, tokens."""

import torch
from torch import Tensor

from nufed.common.examples import TaskInfo


def mean_cross_entropies(
    scores: Tensor, targets: Tensor, num_dims: int, *, ignored: int, smoothing: float = 0.0
) -> Tensor:
    """Return each example's mean over its positions that count; 0 for one that has none.

    Args:
        scores: [..., *positions, K].
        targets: class numbers [..., *positions].
        num_dims: how many dimensions positions have.
        ignored: the target of positions that do not count.
        smoothing: share of the probability that is spread over all classes.
    """
    counts = targets != ignored
    log_shares = scores.log_softmax(-1)
    each = -log_shares.gather(-1, targets.where(counts, 0).unsqueeze(-1)).squeeze(-1)
    if smoothing:
        each = (1 - smoothing) * each - smoothing * log_shares.mean(-1)
    return over_positions(each.where(counts, 0.0), num_dims) / over_positions(counts, num_dims).clamp(min=1)


def over_positions(values: Tensor, num_dims: int) -> Tensor:
    """Return the sums over the last dimensions."""
    total: Tensor = values.flatten(-num_dims).sum(-1)
    return total


def ignored_number(info: TaskInfo) -> int:
    """Return the target of positions that do not count."""
    return int(dict(info.options).get("ignore-index", -100))


def smoothing_of(info: TaskInfo) -> float:
    """Return the share of the probability that is spread over all classes."""
    return float(dict(info.options).get("label-smoothing", 0.0))


def one_hot(targets: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Return 1 where the class of the last dimension is the target's, else 0; [..., K] of the type of `like`."""
    return (targets.unsqueeze(-1) == torch.arange(num_classes, device=targets.device)).to(like.dtype)
