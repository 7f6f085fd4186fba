"""How much a run reveals: (ε, δ) of Gaussian mechanisms on random samples, composed one after another.

**What is protected.** A *unit* (a client, or an example) is protected: of two runs that differ in one unit, every set
of outcomes has probabilities p ≤ e^ε p' + δ of each other. "Differ" means that the unit is there in one run and absent
in the other, or that it is there in both and contributes zeros in one of them (dp-accounting's ADD_OR_REMOVE_ONE and
REPLACE_SPECIAL, which have the same ε here). Replacing a unit by another is a removal and an addition: its ε at the
same noise is larger, at most 2ε at δ (1 + e^ε).

**What one step is.** Each unit is drawn with probability q, independently of all others and in secret; a drawn unit
adds a vector no longer than C; N(0, (z C)²) is added to every coordinate of the sum, and the sum alone is published.
The sum is divided by a public constant (q n of the n that were announced), never by how many were drawn or answered: a
denominator that depended on the unit would change the length of everybody else's part.

**A cap.** With `cap` B, a random B of the drawn take part when more were drawn. A unit that is drawn then may displace
another, so that the sum moves by up to 2 C; that happens only where B others were drawn, and dp-accounting's
`from_truncated_subsampled_gaussian_mechanism` (arXiv 2508.15089) mixes both cases by their probabilities. It bounds
that case by the replacement of a unit, which covers its being absent and its being zeros.

Composition is numerical, by privacy loss distributions, and pessimistic (Doroshenko et al., 2022, "Connect the dots"):
the true ε is never above what is returned but for the rounding of doubles, and seldom more than 0.2 % below it.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from nufed.common.errors import ConfigError

SMALLEST_DELTA = 1e-12
"""Below it, rounding of the doubles that distributions are composed in is no longer small beside δ."""

NOISE_RANGE = (0.01, 1e6)
"""Noise multipliers between which `calibrated_noise` searches; less than the first protects nobody."""

PRECISION = 0.005
"""Part of the ε asked for by which what the noise found gives may stay below it."""

POINTS_PER_DEVIATION = 8
"""Points of the grid of privacy losses in one standard deviation of a step's loss; more cost time and gain < 0.2 %."""

MOST_POINTS = 2**17
"""About as many points has the grid of a composition at most; wider ones have coarser grids, and a larger ε."""

COARSEST_INTERVAL = 2.0**-7


@dataclass(frozen=True)
class SampledGaussian:
    """One release of a noised sum over a random sample of units.

    Attributes:
        noise: z, standard deviation of the noise on each coordinate of the sum, in clipping lengths C; 0: no noise.
        rate: q, probability with which each unit is drawn (Poisson), 0 to 1.
        population: n, units that may be drawn; needed with a cap alone.
        cap: most units that take part; of more that were drawn, a random choice does; 0: all.
    """

    noise: float
    rate: float = 1.0
    population: int = 0
    cap: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no mechanism.

        Raises:
            ConfigError: if a value is out of range, or there is a cap and no population.
        """
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ConfigError(f"the noise multiplier must be a number from 0, got {self.noise}")
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"a sampling probability must lie between 0 and 1, got {self.rate}")
        if self.population < 0 or self.cap < 0:
            raise ConfigError(f"population and cap must be at least 0, got {self.population} and {self.cap}")
        if self.cap and not self.population:
            raise ConfigError(f"a cap of {self.cap} units needs the population that they are drawn from")

    @property
    def truncates(self) -> bool:
        """Return whether more units may be drawn than take part."""
        return 0 < self.cap < self.population and self.rate > 0


Steps = Mapping[SampledGaussian, int]


def default_delta(n: int) -> float:
    """Return n^-1.1, the δ of n protected units when none is given: less than one unit in n, and at most 1/2.

    >>> round(default_delta(1000), 6)
    0.000501
    """
    return min(math.pow(max(n, 1), -1.1), 0.5)


def epsilon(steps: Steps, delta: float) -> float:
    """Return ε at `delta` of steps taken one after another, each as often as it counts.

    0 when there are none; infinite when one has no noise.

    Raises:
        ConfigError: if δ does not lie between 1e-12 and 1, or a count is negative.
    """
    if not SMALLEST_DELTA <= delta < 1:
        raise ConfigError(f"delta must lie between {SMALLEST_DELTA:g} and 1, got {delta:g}")
    if any(count < 0 for count in steps.values()):
        raise ConfigError(f"steps are counted from 0, got {min(steps.values())}")
    return _epsilon(tuple((step, count) for step, count in steps.items() if count and step.rate > 0), delta)


def calibrated_noise(
    steps_of: Callable[[float], SampledGaussian | Steps], count: int, epsilon_asked: float, delta: float
) -> float:
    """Return the least noise multiplier z with which `count` times `steps_of(z)` stay within ε, to 0.5 % of ε.

    Raises:
        ConfigError: if no z between 0.01 and a million gives that ε.
    """
    if not (math.isfinite(epsilon_asked) and epsilon_asked > 0):
        raise ConfigError(f"epsilon must be a positive number to find the noise for, got {epsilon_asked:g}")
    if count < 1:
        raise ConfigError(f"noise is found for one round or more, got {count}")

    def spent(noise: float) -> float:
        steps = steps_of(noise)
        counted = {steps: 1} if isinstance(steps, SampledGaussian) else steps
        return epsilon({step: times * count for step, times in counted.items()}, delta)

    low, high = _bracket(spent, epsilon_asked)
    while not (1 - PRECISION) * epsilon_asked <= high[1] <= epsilon_asked:
        noise = _between(low, high, epsilon_asked)
        if not low[0] < noise < high[0]:  # neighbouring doubles: ε jumps here, and what is noisier stays within it
            break
        found = noise, spent(noise)
        low, high = (low, found) if found[1] <= epsilon_asked else (found, high)
    return high[0]


class Account:
    """What has been spent: it counts steps while a run goes on, and tells ε whenever it is asked."""

    def __init__(self, steps: Steps | None = None) -> None:
        self._counts: dict[SampledGaussian, int] = {}
        self._most: dict[float, float] = {}
        for step, count in (steps or {}).items():
            self.add(step, count)

    @property
    def steps(self) -> dict[SampledGaussian, int]:
        """Return how often each step was taken, the one that was taken last at the end."""
        return dict(self._counts)

    def add(self, step: SampledGaussian, count: int = 1) -> None:
        """Count `step` as taken `count` more times.

        Raises:
            ConfigError: if `count` is negative.
        """
        if count < 0:
            raise ConfigError(f"what was spent cannot be taken back, got {count} steps")
        if count:
            self._counts[step] = self._counts.pop(step, 0) + count

    def epsilon(self, delta: float) -> float:
        """Return ε at `delta` of all steps so far; never less than was returned before."""
        spent = max(epsilon(self._counts, delta), self._most.get(delta, 0.0))
        self._most[delta] = spent
        return spent

    def with_more(self, step: SampledGaussian, count: int = 1) -> "Account":
        """Return another account in which `step` was taken `count` more times: what a round would cost."""
        more = Account(self._counts)
        more._most = dict(self._most)
        more.add(step, count)
        return more

    def to_json(self) -> list[dict[str, Any]]:
        """Return the steps and their counts as plain values."""
        return [{**asdict(step), "count": count} for step, count in self._counts.items()]

    @classmethod
    def from_json(cls, rows: Iterable[Mapping[str, Any]]) -> "Account":
        """Return the account that `to_json` gave.

        Raises:
            ConfigError: if a row is none of them.
        """
        account = cls()
        for row in rows:
            try:
                values = dict(row)
                count = int(values.pop("count"))
                account.add(SampledGaussian(**values), count)
            except (TypeError, ValueError, KeyError) as error:
                raise ConfigError(f"a row of a privacy account has a step's values and a count, got {row}") from error
        return account


# --- search

_Tried = tuple[float, float]


def _bracket(spent: Callable[[float], float], asked: float) -> tuple[_Tried, _Tried]:
    """Return a noise and its ε above what is asked, and another pair within it, a factor of 4 apart."""
    least, most = NOISE_RANGE
    noise = 1.0
    tried = noise, spent(noise)
    within = tried[1] <= asked
    while True:
        noise = max(noise / 4, least) if within else min(noise * 4, most)
        if noise == tried[0]:
            side = "not more than that protects nobody" if within else "fewer rounds or a smaller share of clients help"
            raise ConfigError(
                f"no noise multiplier from {least:g} to {most:g} gives epsilon = {asked:g}: "
                f"z = {noise:g} gives {tried[1]:.3g}; {side}"
            )
        last, tried = tried, (noise, spent(noise))
        if (tried[1] <= asked) is not within:
            return (tried, last) if within else (last, tried)


def _between(low: _Tried, high: _Tried, asked: float) -> float:
    """Return a noise between two: where the line through log ε meets the middle of what is accepted, or halfway."""
    start, width = math.log(low[0]), math.log(high[0] / low[0])
    share = 0.5
    if 0 < high[1] < low[1] < math.inf:
        share = math.log(low[1] / ((1 - PRECISION / 2) * asked)) / math.log(low[1] / high[1])
    return math.exp(start + width * min(max(share, 0.05), 0.95))


# --- grid and composition


def _deviation(step: SampledGaussian) -> float:
    """Return about the standard deviation of one step's privacy loss.

    q √(e^(1/z²) − 1), the root of the χ² divergence, where losses are small; else that of a loss of up to 1/(2 z²) with
    probability q.
    """
    exponent = step.noise**-2
    of_large = math.sqrt(step.rate * ((exponent / 2) ** 2 + exponent))
    return max(min(step.rate * math.sqrt(math.expm1(exponent)), of_large) if exponent < 500 else of_large, 1e-12)


def _width(step: SampledGaussian) -> float:
    """Return about the largest minus the smallest privacy loss of one step, up to ten deviations of its noise."""
    reach = 10 / step.noise + 0.5 / step.noise**2
    above = float(max(reach + math.log(step.rate), 0.0)) + step.rate * min(reach, 1.0)
    return above + min(reach, -math.log1p(-step.rate) if step.rate < 1 else reach)


def _interval(items: tuple[tuple[SampledGaussian, int], ...]) -> float:
    """Return the distance of the grid's points, a power of two so that grids of different runs are nested."""
    total = sum(count for _, count in items)
    spread = math.sqrt(sum(count * _deviation(step) ** 2 for step, count in items))
    fine = spread / math.sqrt(total) / POINTS_PER_DEVIATION
    coarse = (max(_width(step) for step, _ in items) + 20 * spread) / MOST_POINTS
    return float(2.0 ** math.floor(math.log2(max(min(fine, COARSEST_INTERVAL), coarse))))


@lru_cache(maxsize=64)
def _epsilon(items: tuple[tuple[SampledGaussian, int], ...], delta: float) -> float:
    """Return ε; what a round would cost is asked for before it, and once more after it."""
    if not items:
        return 0.0
    if any(step.noise == 0 for step, _ in items):
        return math.inf
    interval = _interval(items)
    if len(items) > 3:  # whatever was done before the last steps is composed once, and remembered
        return float(_composed(items, interval).get_epsilon_for_delta(delta))
    times = math.gcd(*(count for _, count in items))  # rounds that are alike: one is composed, and remembered
    one = _composed(tuple((step, count // times) for step, count in items), interval)
    return float(_repeated(one, times).get_epsilon_for_delta(delta))


@lru_cache(maxsize=32)
def _single(step: SampledGaussian, interval: float) -> Any:
    """Return the privacy loss distribution of one step, on a grid of `interval`."""
    from dp_accounting.pld import privacy_loss_distribution as pld  # costs a second, which runs without DP do not pay

    if step.truncates:
        return pld.from_truncated_subsampled_gaussian_mechanism(
            step.population, step.rate, step.cap, step.noise, value_discretization_interval=interval
        )
    return pld.from_gaussian_mechanism(step.noise, sampling_prob=step.rate, value_discretization_interval=interval)


@lru_cache(maxsize=32)
def _composed(items: tuple[tuple[SampledGaussian, int], ...], interval: float) -> Any:
    """Return the distribution of all `items`; what all but the last give is remembered."""
    *before, (step, count) = items
    last = _repeated(_single(step, interval), count)
    return _composed(tuple(before), interval).compose(last) if before else last


def _repeated(distribution: Any, times: int) -> Any:
    return distribution if times == 1 else distribution.self_compose(times)
