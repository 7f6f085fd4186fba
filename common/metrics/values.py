"""Metrics of values and of counts: outputs [..., N, K] are values, or the logarithms of rates."""

from collections.abc import Callable

import torch
from torch import Tensor

from nufed.common.metrics.judged import Judged, mean_of_defined, ratio

OfEach = Callable[[Judged], Tensor]
"""A metric for each of K outputs, [..., K]."""


def absolute_errors(of: Judged) -> Tensor:
    """Return the mean absolute error of each output."""
    return _mean(of, (_values(of) - _targets(of)).abs())


def root_mean_squares(of: Judged) -> Tensor:
    """Return the root of the mean squared error of each output."""
    return _mean(of, (_values(of) - _targets(of)).square()).sqrt()


def determinations(of: Judged) -> Tensor:
    """Return R² = 1 - Σ (y - ŷ)² / Σ (y - ȳ)² of each output; NaN where its targets are all alike."""
    targets, weights = _targets(of), of.weights.unsqueeze(-1)
    mean = (weights * targets).sum(-2, keepdim=True) / weights.sum(-2, keepdim=True)
    left = (weights * (targets - _values(of)).square()).sum(-2)
    total = (weights * (targets - mean).square()).sum(-2)
    largest = (weights * targets.abs()).amax(-2)
    varies = total > of.counted.sum(-1, keepdim=True) * (8 * torch.finfo(torch.float64).eps * largest).square()
    return torch.where(varies, 1 - left / total, torch.nan)


def deviance(of: Judged) -> Tensor:
    """Return Poisson's deviance 2 (y log(y / λ) - (y - λ)) for rates λ, mean over examples and outputs."""
    log_rates, counts = _values(of), _targets(of)
    return _mean(of, 2 * (torch.xlogy(counts, counts) - counts * log_rates - counts + log_rates.exp())).mean(-1)


def rate_errors(of: Judged) -> Tensor:
    """Return the absolute difference of count and rate, mean over examples and outputs."""
    return _mean(of, (_values(of).exp() - _targets(of)).abs()).mean(-1)


def rate_root_mean_square(of: Judged) -> Tensor:
    """Return the root of the mean squared difference of count and rate, mean over outputs."""
    return _mean(of, (_values(of).exp() - _targets(of)).square()).sqrt().mean(-1)


def over_outputs(each: OfEach) -> Callable[[Judged], Tensor]:
    """Return the metric that is the mean over the outputs for which it is defined."""
    return lambda of: mean_of_defined(each(of))


def of_output(each: OfEach, number: int) -> Callable[[Judged], Tensor]:
    """Return the metric of one output."""
    return lambda of: each(of)[..., number]


def _values(of: Judged) -> Tensor:
    return _as_columns(of.outputs, of)


def _targets(of: Judged) -> Tensor:
    return _as_columns(of.targets, of)


def _as_columns(tensor: Tensor, of: Judged) -> Tensor:
    """Return [..., N, K] in float64; K is 1 where there is no such dimension."""
    kept = tensor.shape[: of.leading + 1]
    return tensor.double().reshape(*kept, -1)


def _mean(of: Judged, each: Tensor) -> Tensor:
    return ratio(torch.where(of.counted.unsqueeze(-1), each, 0.0).sum(-2), of.counted.sum(-1, keepdim=True))
