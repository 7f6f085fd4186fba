"""Means over seeds with intervals, paired differences, Holm's correction, a bootstrap over clients, censored medians.

Pure functions on numbers. What one seed gives is one observation: clients of one federation share its model and are
not independent, so that intervals over seeds do not shrink with the number of clients.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from nufed.common.rng import numpy_generator

CONFIDENCE = 0.95
MIN_SEEDS = 3
"""Observations from which on there is a verdict: the spread of two is hardly known, and two agree by chance."""
ROUNDING = 1e-12
"""What observations, of accuracies and losses around 1, may differ by and be equal all the same."""
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From values [..., N] of N clients to one number for each leading index, [...]."""
MOST_VALUES = 2**22
"""Values that are resampled at once: 32 MiB."""


@dataclass(frozen=True)
class Grain:
    """How finely observations can differ, below which equal ones show nothing.

    Attributes:
        example: what one example, answered otherwise, changes an observation by; 0 for numbers that are not counted.
        rounding: what equal observations may differ by.
    """

    example: float = 0.0
    rounding: float = ROUNDING


class Differences(dict[int, float]):
    """Paired differences by seed, which know their grain: a dictionary with this one fact more."""

    def __init__(self, values: Mapping[int, float], grain: Grain) -> None:
        super().__init__(values)
        self.grain = grain


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        mean: the estimate.
        low: lower end; -inf where the spread is not known, from fewer than `MIN_SEEDS` observations or equal ones.
        high: upper end, likewise.
        num: observations.
        p_value: two-sided, of the mean being 0; NaN where the spread is not known.
        least: smallest observation; NaN if that was not kept.
        most: largest observation, likewise.
    """

    mean: float
    low: float
    high: float
    num: int
    p_value: float = math.nan
    least: float = math.nan
    most: float = math.nan

    @property
    def half_width(self) -> float:
        """Return how far the interval reaches to either side."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Return whether 0 lies outside; never for an interval with an end that is NaN."""
        return self.low > 0 or self.high < 0

    def turned(self) -> "Interval":
        """Return the interval of the negative."""
        return Interval(-self.mean, -self.high, -self.low, self.num, self.p_value, -self.most, -self.least)


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE, *, grain: Grain | None = None) -> Interval:
    """Return mean ± t_{R-1} sd / √R of R observations, their sd at least what one example is worth.

    Accuracies on few examples often differ by the same count on every seed, although the next seed would differ by
    another: a spread of 0 is then what counting in whole examples looks like. Of numbers that are not counted, equal
    observations tell nothing about the spread.

    Args:
        values: one per seed, at least one; a NaN makes everything NaN.
        confidence: probability that the interval covers the mean of normal observations.
        grain: how finely the observations can differ.
    """
    grain = grain or Grain()
    array = np.asarray(values, dtype=np.float64)
    mean, num = float(array.mean()), len(array)
    if not bool(np.isfinite(array).all()):
        return Interval(mean, math.nan, math.nan, num)
    ends = float(array.min()), float(array.max())
    unknown = Interval(mean, -math.inf, math.inf, num, math.nan, *ends)
    if num < MIN_SEEDS:
        return unknown
    deviation = max(float(array.std(ddof=1)), grain.example)
    if deviation <= max(grain.rounding, ROUNDING * abs(mean)):
        within = abs(mean) <= grain.rounding
        return Interval(mean, mean - grain.rounding, mean + grain.rounding, num, 1.0, *ends) if within else unknown
    error = deviation / math.sqrt(num)
    reach = float(student_t.ppf(0.5 + confidence / 2, num - 1)) * error
    p_value = 2 * float(student_t.sf(abs(mean) / error, num - 1))
    return Interval(mean, mean - reach, mean + reach, num, p_value, *ends)


@dataclass(frozen=True)
class Corrected:
    """A difference among several that are looked at together.

    Attributes:
        interval: with Holm's level for its rank; it excludes 0 exactly if Holm's test rejects "no difference".
        p_adjusted: Holm's adjusted p-value; NaN if there is none.
    """

    interval: Interval
    p_adjusted: float

    def turned(self) -> "Corrected":
        """Return the difference seen from the other side."""
        return Corrected(self.interval.turned(), self.p_adjusted)


def holm(differences: Mapping[str, Mapping[int, float]]) -> dict[str, Corrected]:
    """Return each difference's interval corrected for the number of differences (Holm 1979).

    Ordered by p-value, the k-th of m (from 0) is tested at 0.05 / (m - k) until one is not rejected; that one and all
    after it are shown at its level, so that intervals and decisions agree.

    Args:
        differences: name -> seed -> paired difference, as `Differences` where their grain is known.
    """
    plain = {name: _interval(values) for name, values in differences.items()}
    order = sorted(plain, key=lambda name: (math.isnan(plain[name].p_value), plain[name].p_value))
    corrected: dict[str, Corrected] = {}
    adjusted, level, stopped = 0.0, 0.0, False
    for rank, name in enumerate(order):
        remaining = len(order) - rank
        if not stopped:
            level = (1 - CONFIDENCE) / remaining
        p_value = plain[name].p_value
        adjusted = max(adjusted, min(1.0, p_value * remaining)) if not math.isnan(p_value) else math.nan
        stopped = stopped or not p_value < level
        corrected[name] = Corrected(_interval(differences[name], 1 - level), adjusted)
    return {name: corrected[name] for name in differences}


def _interval(values: Mapping[int, float], confidence: float = CONFIDENCE) -> Interval:
    grain = values.grain if isinstance(values, Differences) else None
    return t_interval(list(values.values()), confidence, grain=grain)


def two_stage_bootstrap(
    values: Sequence[NDArray[np.float64]],
    statistic: Statistic,
    *,
    num_draws: int = 2000,
    seed: int = 0,
    grain: float = 0.0,
) -> Interval:
    """Return a statistic over clients, mean over seeds, with its percentile interval.

    Each draw takes as many seeds as there are with replacement, then as many of each one's clients with replacement.
    There is no interval of fewer than `MIN_SEEDS` seeds, of a single client, or where no draw differs from another.

    Args:
        values: for each seed, one number per client.
        statistic: of the clients of one seed, or of many resamples of them, e.g. `spread` or `worst_decile`.
        num_draws: bootstrap draws.
        seed: of the draws.
        grain: what one example, answered otherwise, changes the statistic by; the interval reaches at least that far.
    """
    each = [float(statistic(clients)) for clients in values]
    mean, ends = float(np.mean(each)), (min(each), max(each))
    unknown = Interval(mean, -math.inf, math.inf, len(values), math.nan, *ends)
    if len(values) < MIN_SEEDS or min(map(len, values)) < 2:
        return unknown
    rng = numpy_generator(seed, "experiments", "bootstrap")
    seeds = rng.integers(0, len(values), (num_draws, len(values)))
    resampled = np.empty(seeds.shape)
    for index, clients in enumerate(values):
        drawn = np.flatnonzero(seeds == index)
        for part in np.array_split(drawn, 1 + drawn.size * len(clients) // MOST_VALUES):
            rows = rng.integers(0, len(clients), (part.size, len(clients)))
            resampled.flat[part] = statistic(clients[rows])
    low, high = np.quantile(resampled.mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = min(float(low), mean - grain), max(float(high), mean + grain)
    return unknown if high - low <= ROUNDING else Interval(mean, low, high, len(values), math.nan, *ends)


def worst_decile(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the ⌈0.1 N⌉ smallest of values [..., N], [...]."""
    worst = np.sort(values, axis=-1)[..., : math.ceil(values.shape[-1] / 10)]
    return np.asarray(worst.mean(axis=-1))


def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation of values [..., N], [...] (N - 1 in the denominator; 0 for one value)."""
    return np.asarray(values.std(axis=-1, ddof=1) if values.shape[-1] > 1 else np.zeros(values.shape[:-1]))


@dataclass(frozen=True)
class Censored:
    """A median over runs of which some did not reach what was waited for; those are inf.

    Attributes:
        median: over all runs; inf if at least half did not get there.
        low: fastest run.
        high: slowest run.
        num_reached: runs that got there.
        num: runs.
    """

    median: float
    low: float
    high: float
    num_reached: int
    num: int

    def text(self, limit: float, form: str = "{:.0f}") -> str:
        """Return `30 (20 to 50)`, with `> limit` for what was not reached."""

        def show(value: float) -> str:
            return form.format(value) if math.isfinite(value) else f"> {form.format(limit)}"

        if self.low == self.high:
            return show(self.median)
        return f"{show(self.median)} ({show(self.low)} to {show(self.high)})"


def censored_median(values: Sequence[float | None]) -> Censored:
    """Return the median with range; None stands for a run that did not get there and counts as more than any number.

    With an even number of runs the upper of the two middle ones is taken where the other is censored or not.
    """
    ordered = sorted(math.inf if value is None else float(value) for value in values)
    upper = ordered[len(ordered) // 2]
    lower = ordered[(len(ordered) - 1) // 2]
    median = (lower + upper) / 2 if math.isfinite(upper) else math.inf
    return Censored(median, ordered[0], ordered[-1], sum(math.isfinite(each) for each in ordered), len(ordered))
