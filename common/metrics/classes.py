"""Metrics of one class for each example: outputs [..., N, C] are scores, targets [..., N] class numbers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import Tensor

from nufed.common.metrics.judged import Judged, mean_of_defined, ratio
from nufed.common.metrics.ranking import mean_precision, roc_area

NUM_BINS = 15
"""Bins of the calibration error, of equal width, as in Guo et al. 2017."""


def accuracy(of: Judged) -> Tensor:
    """Return the share of examples whose largest output is that of their class."""
    hits: Tensor = (of.counted & (of.best == of.targets)).sum(-1)
    return hits.double() / of.counted.sum(-1)


def balanced_accuracy(of: Judged) -> Tensor:
    """Return the mean over the classes present of the share recognized; NaN where only one is."""
    hits, present, _ = class_counts(of)
    recalls = ratio(hits, present)
    return torch.where((present > 0).sum(-1) > 1, mean_of_defined(recalls), torch.nan)


def f1(of: Judged) -> Tensor:
    """Return 2 TP / (2 TP + FP + FN), mean over the classes among the targets or the predictions."""
    hits, present, predicted = class_counts(of)
    return mean_of_defined(ratio(2 * hits, present + predicted))


def sensitivity(of: Judged) -> Tensor:
    """Return the share of class 1, the positive one of two, that is recognized; NaN without it."""
    hits, present, _ = class_counts(of)
    return ratio(hits[..., 1], present[..., 1])


def specificity(of: Judged) -> Tensor:
    """Return the share of class 0, the negative one of two, that is recognized; NaN without it."""
    hits, present, _ = class_counts(of)
    return ratio(hits[..., 0], present[..., 0])


def auroc(of: Judged) -> Tensor:
    """Return the area under the ROC curve of class 1 of two; of more, mean of each against all others."""
    return _one_against_rest(of, roc_area)


def average_precision(of: Judged) -> Tensor:
    """Return the average precision of class 1 of two; of more, mean of each against all others."""
    return _one_against_rest(of, mean_precision)


def brier(of: Judged) -> Tensor:
    """Return the mean squared error of the probability of class 1 of two; of more, summed over the classes."""
    wrong = _probabilities(of) - _one_hot(of)
    each = wrong.square().sum(-1)
    return _mean(of, each / 2 if of.outputs.shape[-1] == 2 else each)


def calibration_error(of: Judged) -> Tensor:
    """Return Σ over 15 bins of the confidence, weighted by examples, of |accuracy - mean confidence|."""
    confidence, best = _probabilities(of).max(-1)
    return binned_gap(confidence, (best == of.targets).double(), of.weights)


def log_loss(of: Judged) -> Tensor:
    """Return -log of the probability of the right class, mean over examples."""
    chances = of.outputs.double().log_softmax(-1)
    return _mean(of, -chances.gather(-1, of.targets.unsqueeze(-1)).squeeze(-1))


def class_counts(of: Judged) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each class, [..., C]: examples of it that are recognized, examples of it, examples taken for it."""
    best, weights = of.best, of.weights
    nothing = weights.new_zeros((*weights.shape[:-1], of.outputs.shape[-1]))
    hits = nothing.scatter_add(-1, of.targets, weights * (best == of.targets))
    return hits, nothing.scatter_add(-1, of.targets, weights), nothing.scatter_add(-1, best, weights)


def confusion(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return how many examples of each class (row) are taken for each class (column), [C, C]; outputs are [N, C]."""
    size = outputs.shape[-1]
    return torch.bincount(targets * size + outputs.argmax(-1), minlength=size * size).reshape(size, size)


def binned_gap(confidence: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Return the calibration error of confidences [..., N] in [0, 1]."""
    bins = (confidence * NUM_BINS).ceil().long().sub(1).clamp(0, NUM_BINS - 1)
    gaps = weights.new_zeros((*weights.shape[:-1], NUM_BINS)).scatter_add(-1, bins, weights * (right - confidence))
    return gaps.abs().sum(-1) / weights.sum(-1)


def _mean(of: Judged, each: Tensor) -> Tensor:
    return torch.where(of.counted, each.double(), 0.0).sum(-1) / of.counted.sum(-1)


def _probabilities(of: Judged) -> Tensor:
    return of.outputs.double().softmax(-1)


def _one_hot(of: Judged) -> Tensor:
    return F.one_hot(of.targets, of.outputs.shape[-1])


def _one_against_rest(of: Judged, area: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Return the area of class 1 of two; of more, the mean over the classes that are there and are not alone."""
    outputs = of.outputs.double()
    if outputs.shape[-1] == 2:
        margin = outputs[..., 1] - outputs[..., 0]  # probabilities near 1 round to ties
        return _where_two(of, area(margin, of.targets == 1, of.counted))
    scores = outputs.log_softmax(-1).movedim(-1, 0)
    classes = torch.arange(outputs.shape[-1], device=outputs.device).reshape(-1, *[1] * of.targets.dim())
    members = of.targets.unsqueeze(0) == classes
    areas = area(scores, members, of.counted.expand_as(members))
    return _where_two(of, mean_of_defined(areas, 0))


def _where_two(of: Judged, values: Tensor) -> Tensor:
    """Return the values where examples of two classes at least are there, else NaN."""
    low = torch.where(of.counted, of.targets, torch.iinfo(torch.int64).max).amin(-1)
    high = torch.where(of.counted, of.targets, -1).amax(-1)
    return torch.where(high > low, values, torch.nan)
