"""How well scores tell the positive from the negative examples: areas under the ROC and the precision-recall curve."""

import torch
from torch import Tensor

from nufed.common.metrics.judged import ratio


def roc_area(scores: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    """Return the share of pairs of a positive and a negative example whose scores are in order; ties count half.

    The area under the ROC curve (Hanley and McNeil 1982); NaN where there is no positive or no negative example.

    Args:
        scores: [..., N], larger for what is taken to be positive.
        positive: [..., N] bool.
        counted: [..., N] bool.
    """
    scores = _finite(scores)
    negative = counted & ~positive
    below, up_to = _ranks(scores, negative)
    wins = ((below + up_to) / 2 * (counted & positive)).sum(-1)
    return ratio(wins, negative.sum(-1).double() * (counted & positive).sum(-1))


def mean_precision(scores: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    """Return the average precision: the mean over the positive examples of the precision at each one's score.

    As Σ (R_k - R_{k-1}) P_k over the distinct scores, without interpolation; NaN without a positive example. Arguments
    are as of `roc_area`.
    """
    scores, found = _finite(scores), counted & positive
    num_all, num_found = counted.sum(-1, keepdim=True), found.sum(-1, keepdim=True)
    at_least = num_all - _ranks(scores, counted)[0]
    positive_at_least = num_found - _ranks(scores, found)[0]
    precision = torch.where(found, positive_at_least / at_least, 0.0)
    return ratio(precision.sum(-1), num_found.squeeze(-1).double())


def _ranks(scores: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many members have a smaller score than each example, and how many one that is not larger; float64."""
    ordered = torch.where(members, scores, -torch.inf).sort(-1).values.contiguous()
    others = (~members).sum(-1, keepdim=True)  # sorted to the front
    left = torch.searchsorted(ordered, scores) - others
    return left.double(), (torch.searchsorted(ordered, scores, right=True) - others).double()


def _finite(scores: Tensor) -> Tensor:
    """Return scores in float64, so that -inf is left for those that are sorted to the front."""
    return scores.double().clamp(min=torch.finfo(torch.float64).min).contiguous()
