"""How sure a number is that was found on few examples: 95 % intervals of one client's metrics."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nufed.common.rng import numpy_generator

FEW = 100
"""Trials below which an interval is given."""

Z = 1.959963984540054
"""Standard deviations of a normal distribution that hold 95 %."""

NUM_DRAWS = 400
_FEWEST_DEFINED = NUM_DRAWS // 2
_MOST_NUMBERS = 2**22

Interval = tuple[float, float]


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's 95 % interval of a share (Wilson 1927); from 0 to 1 without trials.

    Examples:
        >>> [round(end, 3) for end in wilson(0, 8)]
        [0.0, 0.324]
    """
    if trials == 0:
        return 0.0, 1.0
    share, spare = successes / trials, Z * Z / trials
    middle = (share + spare / 2) / (1 + spare)
    reach = Z * math.sqrt(share * (1 - share) / trials + spare / (4 * trials)) / (1 + spare)
    low, high = middle - reach, middle + reach
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


def bootstrap(metric: Callable[[Tensor], Tensor], num_examples: int, size: int, *seed: int | str) -> Interval | None:
    """Return the percentile interval of a metric over seeded resamples of the examples.

    Args:
        metric: rows [B, N] of the examples -> the metric on each of B resamples, [B].
        num_examples: N, of which each resample draws as many, with replacement.
        size: numbers of one example, which decides how many resamples are held at once.
        *seed: the run's seed, and what makes the stream this client's.

    Returns:
        None where the metric is undefined on half of the resamples.
    """
    run_seed, *purpose = seed
    draws = numpy_generator(int(run_seed), "interval", *purpose).integers(0, num_examples, (NUM_DRAWS, num_examples))
    at_once = max(1, min(NUM_DRAWS, _MOST_NUMBERS // max(1, size * num_examples)))
    parts = np.array_split(draws, math.ceil(NUM_DRAWS / at_once))
    values = torch.cat([metric(torch.from_numpy(part)) for part in parts]).double().cpu().numpy()
    defined = values[np.isfinite(values)]
    if len(defined) < _FEWEST_DEFINED:
        return None
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
