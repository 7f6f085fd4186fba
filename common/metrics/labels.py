"""Metrics of several labels for each example: outputs [..., N, K] are scores, targets [..., N, K] are 0 or 1.

Each is computed label by label, and is the mean over the labels for which it is defined.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import Tensor

from nufed.common.metrics.classes import binned_gap
from nufed.common.metrics.judged import Judged, mean_of_defined, ratio
from nufed.common.metrics.ranking import mean_precision, roc_area


def accuracy(of: Judged) -> Tensor:
    """Return the share of labels that are right; a label is predicted where its probability is above one half."""
    return _mean(of, (_scores(of) > 0) == _positive(of))


def balanced_accuracy(of: Judged) -> Tensor:
    """Return the mean of sensitivity and specificity of each label."""
    return mean_of_defined((_recall(of, of_positive=True) + _recall(of, of_positive=False)) / 2)


def f1(of: Judged) -> Tensor:
    """Return 2 TP / (2 TP + FP + FN) of each label; of one that is neither there nor predicted it is undefined."""
    weights, taken, is_there = _weights(of), _scores(of) > 0, _positive(of)
    hits = (weights * (taken & is_there)).sum(-1)
    return mean_of_defined(ratio(2 * hits, (weights * taken).sum(-1) + (weights * is_there).sum(-1)))


def sensitivity(of: Judged) -> Tensor:
    """Return the share of the examples with a label that are recognized."""
    return mean_of_defined(_recall(of, of_positive=True))


def specificity(of: Judged) -> Tensor:
    """Return the share of the examples without a label that are recognized."""
    return mean_of_defined(_recall(of, of_positive=False))


def auroc(of: Judged) -> Tensor:
    """Return the area under the ROC curve of each label."""
    return _area(of, roc_area)


def average_precision(of: Judged) -> Tensor:
    """Return the average precision of each label that is on some examples and not on all."""
    positive, counted = _positive(of), _counted(of)
    varies = (positive & counted).any(-1) & (~positive & counted).any(-1)
    return mean_of_defined(torch.where(varies, mean_precision(_scores(of), positive, counted), torch.nan))


def brier(of: Judged) -> Tensor:
    """Return the mean squared error of the probabilities."""
    return _mean(of, (_scores(of).sigmoid() - _positive(of).double()).square())


def calibration_error(of: Judged) -> Tensor:
    """Return Σ over 15 bins of the confidence, weighted by examples, of |accuracy - mean confidence|."""
    chance = _scores(of).sigmoid()
    is_right = ((chance > 0.5) == _positive(of)).double()
    return mean_of_defined(binned_gap(torch.maximum(chance, 1 - chance), is_right, _weights(of)))


def log_loss(of: Judged) -> Tensor:
    """Return -log of the probability of what is the case, mean over examples and labels."""
    signs = torch.where(_positive(of), 1.0, -1.0)
    return _mean(of, -F.logsigmoid(signs * _scores(of)))


def _scores(of: Judged) -> Tensor:
    """Return [..., K, N] in float64."""
    return of.outputs.double().transpose(-1, -2)


def _positive(of: Judged) -> Tensor:
    targets: Tensor = of.targets.transpose(-1, -2)
    return targets > 0.5


def _counted(of: Judged) -> Tensor:
    return of.counted.unsqueeze(-2).expand(*of.counted.shape[:-1], of.outputs.shape[-1], of.counted.shape[-1])


def _weights(of: Judged) -> Tensor:
    return _counted(of).double()


def _mean(of: Judged, each: Tensor) -> Tensor:
    return mean_of_defined(torch.where(_counted(of), each.double(), 0.0).sum(-1) / of.counted.sum(-1, keepdim=True))


def _recall(of: Judged, *, of_positive: bool) -> Tensor:
    wanted = _positive(of) if of_positive else ~_positive(of)
    weights = _weights(of) * wanted
    return ratio((weights * ((_scores(of) > 0) == of_positive)).sum(-1), weights.sum(-1))


def _area(of: Judged, area: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    return mean_of_defined(area(_scores(of), _positive(of), _counted(of)))
