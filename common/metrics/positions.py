"""Metrics of a class at each of several positions: pixels of masks [..., N, C, H, W], tokens of texts [..., N, L, V].

Positions of all examples are counted together; those whose target is the ignored number are left out.
"""

import torch
from torch import Tensor

from nufed.common.metrics.judged import Judged, mean_of_defined, ratio


def pixel_accuracy(of: Judged) -> Tensor:
    """Return the share of pixels of the right class."""
    best, targets, weights = _pixels(of)
    return ratio((weights * (best == targets)).sum(-1), weights.sum(-1))


def dice(of: Judged) -> Tensor:
    """Return 2 TP / (2 TP + FP + FN), mean over the classes but 0, the background, that occur; NaN where none does."""
    hits, present, predicted = _pixel_counts(of)
    return mean_of_defined(ratio(2 * hits, present + predicted)[..., 1:])


def iou(of: Judged) -> Tensor:
    """Return TP / (TP + FP + FN), the intersection over the union, mean as in `dice`."""
    hits, present, predicted = _pixel_counts(of)
    return mean_of_defined(ratio(hits, present + predicted - hits)[..., 1:])


def token_accuracy(of: Judged) -> Tensor:
    """Return the share of tokens whose largest output is that of their class."""
    weights = _kept(of, of.targets)
    return ratio((weights * (of.outputs.argmax(-1) == of.targets)).flatten(of.leading).sum(-1), _total(of, weights))


def perplexity(of: Judged) -> Tensor:
    """Return exp of the mean over tokens of -log of the probability of the right one."""
    weights = _kept(of, of.targets)
    right = torch.where(weights > 0, of.targets, 0)
    chances = of.outputs.double().log_softmax(-1).gather(-1, right.unsqueeze(-1)).squeeze(-1)
    mean = ratio(-torch.where(weights > 0, chances, 0.0).flatten(of.leading).sum(-1), _total(of, weights))
    return mean.exp()


def _kept(of: Judged, targets: Tensor) -> Tensor:
    """Return 1 at the positions that count, else 0; of the targets' shape, in float64."""
    weights = of.weights.reshape(*of.counted.shape, *[1] * (targets.dim() - of.counted.dim())).expand(targets.shape)
    return weights if of.ignored is None else weights * (targets != of.ignored)


def _total(of: Judged, weights: Tensor) -> Tensor:
    return weights.flatten(of.leading).sum(-1)


def _pixels(of: Judged) -> tuple[Tensor, Tensor, Tensor]:
    """Return predicted classes, targets and weights of all pixels, [..., P]; where weights are 0, targets are 0."""
    best, weights = of.outputs.argmax(of.leading + 1), _kept(of, of.targets)
    targets = torch.where(weights > 0, of.targets, 0)
    flat = [tensor.flatten(of.leading) for tensor in (best, targets, weights)]
    return flat[0], flat[1], flat[2]


def _pixel_counts(of: Judged) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each class, [..., C]: pixels of it that are found, pixels of it, pixels taken for it."""
    best, targets, weights = _pixels(of)
    nothing = weights.new_zeros((*weights.shape[:-1], of.outputs.shape[of.leading + 1]))
    hits = nothing.scatter_add(-1, targets, weights * (best == targets))
    return hits, nothing.scatter_add(-1, targets, weights), nothing.scatter_add(-1, best, weights)
