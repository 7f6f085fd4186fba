"""What a run with client-level differential privacy does in each of its rounds: fixed before the first of them."""

import math
from dataclasses import dataclass

from nufed.common.errors import ConfigError
from nufed.common.privacy.accounting import SampledGaussian, calibrated_noise, default_delta

LEAST_CLIP, MOST_CLIP = 1e-9, 1e9
"""Clipping lengths for which there is a grid of integers."""

LEAST_NOISE, MOST_NOISE = 0.01, 1e6
"""Less noise protects nobody; it is as in `nufed.common.privacy.accounting`."""


@dataclass(frozen=True)
class ClientTerms:
    """The mechanism of a round: clipped updates of a random cohort, their noised sum over a fixed number.

    Attributes:
        clip: C, length to which an update is clipped, over all of its arrays together.
        noise: z; the noise on the sum has the standard deviation z C in each coordinate.
        rate: q, probability with which each client takes part in a round, on its own.
        num_clients: n; the sum is divided by q n, however many take part and answer.
        cohort_cap: most clients of a round; 0 for no limit.
        delta: δ.
    """

    clip: float
    noise: float
    rate: float
    num_clients: int
    cohort_cap: int
    delta: float

    def __post_init__(self) -> None:
        """Refuse terms that no round can have.

        Raises:
            ConfigError: a number is out of range.
        """
        for name, is_allowed, allowed in (
            ("clip", LEAST_CLIP <= self.clip <= MOST_CLIP, f"{LEAST_CLIP:g} to {MOST_CLIP:g}"),
            ("noise", LEAST_NOISE <= self.noise <= MOST_NOISE, f"{LEAST_NOISE:g} to {MOST_NOISE:g}"),
            ("rate", 0 < self.rate <= 1, "above 0, at most 1"),
            ("num_clients", self.num_clients >= 1, "at least 1"),
            ("cohort_cap", self.cohort_cap >= 0, "at least 0"),
            ("delta", 0 < self.delta < 1, "above 0, below 1"),
        ):
            if not is_allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} of differential privacy is refused: expected {allowed}. Change it."
                )

    @property
    def denominator(self) -> float:
        """Return q n, the expected number of clients in a round."""
        return self.rate * self.num_clients

    def step(self, population: int) -> SampledGaussian:
        """Return what a round costs in which `population` clients may be drawn."""
        return sampled_gaussian(self.noise, self.rate, population, self.cohort_cap)


def client_terms(  # noqa: PLR0913 - all by name
    *,
    clip: float,
    rate: float,
    num_clients: int,
    num_rounds: int,
    noise: float = 0.0,
    epsilon: float = 0.0,
    delta: float = 0.0,
    cohort_cap: float = 2.0,
) -> ClientTerms:
    """Return the terms of a run; without `noise`, the least with which its rounds stay within `epsilon`.

    Args:
        clip: C.
        rate: q.
        num_clients: n.
        num_rounds: K, what ε is to last for.
        noise: z; 0 to find it.
        epsilon: ε of all rounds together; of no matter where `noise` is given.
        delta: δ; 0 takes n^-1.1.
        cohort_cap: most clients of a round, in expected cohorts q n; at least 1.

    Raises:
        ConfigError: a number is out of range, or no noise gives such an ε.
    """
    delta = delta or default_delta(num_clients)
    cap = most_clients(num_clients, rate, cohort_cap)
    if not noise:
        if not epsilon:
            raise ConfigError(
                "Expected the noise of differential privacy, or the epsilon that it is found for, got neither. Give "
                "--dp-epsilon or --dp-noise."
            )
        noise = calibrated_noise(
            lambda z: sampled_gaussian(z, rate, num_clients, cap), max(1, num_rounds), epsilon, delta
        )
    return ClientTerms(clip, noise, rate, num_clients, cap, delta)


def most_clients(num_clients: int, rate: float, cohort_cap: float) -> int:
    """Return the most clients of a round, `cohort_cap` expected cohorts rounded up; 0 where that is everybody."""
    cap = max(1, math.ceil(cohort_cap * rate * num_clients))
    return cap if cap < num_clients else 0


def sampled_gaussian(noise: float, rate: float, population: int, cap: int) -> SampledGaussian:
    """Return the step of a round; a cap that nobody can be beyond is none, so that equal rounds are equal steps."""
    if not 0 < cap < population:
        return SampledGaussian(noise, rate)
    return SampledGaussian(noise, rate, population, cap)
