"""What differential privacy would cost a run, before it starts: ε against noise, and what the noise does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.privacy.accounting import SampledGaussian, Steps, calibrated_noise, default_delta, epsilon
from nufed.common.privacy.record import round_steps
from nufed.common.privacy.rules import CONTRADICTIONS
from nufed.common.privacy.terms import most_clients, sampled_gaussian

USUAL_NOISES = (0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Noise multipliers that ε is shown for when none is asked for."""

REFERENCE_EPSILON = 4.0
"""ε that a plan is judged by: with it, the noise should leave a small model something to learn from."""

SMALL_MODEL = 1000
"""Parameters of a small model; where an update of so many drowns, there are too few clients or examples."""


@dataclass(frozen=True)
class Row:
    """One choice of the noise.

    Attributes:
        noise: z.
        epsilon: ε of all rounds.
        unsampled: ε if it were known who took part in each round; sampling would then hide nothing.
        coordinate_noise: standard deviation of the noise on a coordinate of the mean, in clipping lengths C.
        parameters: number of parameters of which one round's noise is as long as C, the longest update.
    """

    noise: float
    epsilon: float
    unsampled: float
    coordinate_noise: float
    parameters: float


@dataclass(frozen=True)
class Cohort:
    """How many clients a round has.

    Attributes:
        expected: q n.
        cap: most of them; n where nobody is ever left out.
        above_cap: probability that more are drawn.
        empty: probability that nobody is drawn, and the round is noise alone.
    """

    expected: float
    cap: int
    above_cap: float
    empty: float


@dataclass(frozen=True)
class Plan:
    """What is protected, how often it is asked, and what noises do.

    Attributes:
        unit: `client` or `record`.
        population: n clients, or N examples of one client.
        rate: q with which a client takes part in a round; of `record`, with which an example is in an outer batch.
        rounds: K.
        delta: δ.
        is_default_delta: whether δ is n^-1.1.
        divisor: q n, or the batch size D: what a noised sum is divided by.
        cohort: of a round; None for `record`.
        mechanisms: of one round of a client: (noise in units of z, rate, times).
        rows: by noise as asked for.
        noise_for_reference: z for ε = 4; None where no z gives it.
    """

    unit: str
    population: int
    rate: float
    rounds: int
    delta: float
    is_default_delta: bool
    divisor: float
    cohort: Cohort | None
    mechanisms: tuple[tuple[float, float, int], ...]
    rows: tuple[Row, ...]
    noise_for_reference: float | None

    @property
    def is_too_small(self) -> bool:
        """Return whether at ε = 4 the noise of a round is longer than any update of a small model."""
        return self.noise_for_reference is None or _parameters(self.divisor, self.noise_for_reference) < SMALL_MODEL


def plan_clients(config: RunConfig, noises: Sequence[float], epsilons: Sequence[float]) -> Plan:
    """Return the plan of a run that protects clients.

    Args:
        config: n, r, K, δ and the cap of the cohort.
        noises: z's that ε is wanted for.
        epsilons: ε's that z is wanted for.

    Raises:
        ConfigError: no noise gives an ε that is asked for.
    """
    n, rate = config.data.num_clients, config.federation.participation_fraction
    cap = most_clients(n, rate, config.privacy.cohort_cap)
    return _plan(
        config,
        lambda z: {sampled_gaussian(z, rate, n, cap): 1},
        _Protected("client", n, rate, n * rate, _cohort(n, rate, cap or n)),
        noises=noises,
        epsilons=epsilons,
    )


def plan_records(config: RunConfig, num_examples: int, noises: Sequence[float], epsilons: Sequence[float]) -> Plan:
    """Return the plan of a client that protects its examples in a run, and takes part in each of its rounds.

    Args:
        config: K, δ, τ, ν, the estimator and the sizes of its batches.
        num_examples: N, examples that the client trains on.
        noises: z's that ε is wanted for.
        epsilons: ε's that z is wanted for.

    Raises:
        ConfigError: no noise gives an ε that is asked for.
    """
    steps = round_steps(config.method, num_examples)
    (_, rate, _), *_ = steps.batches
    return _plan(
        config,
        steps.with_noise,
        _Protected("record", num_examples, rate, rate * num_examples, None),
        noises=noises,
        epsilons=epsilons,
    )


def refusals(config: RunConfig) -> list[str]:
    """Return why such a run would be refused, but for a clipping length and noise, which a plan does without.

    Args:
        config: of the run; without `privacy.dp` that of clients is meant.
    """
    unit = config.privacy.dp if config.privacy.dp != "none" else "client"
    planned = config.updated(
        {"privacy.dp": unit, "privacy.clip": config.privacy.clip or 1.0, "privacy.noise": config.privacy.noise or 1.0}
    )
    return [row.message(planned) for row in CONTRADICTIONS if row.applies(planned)]


@dataclass(frozen=True)
class _Protected:
    """The fields of a plan that depend on what is protected."""

    unit: str
    population: int
    rate: float
    divisor: float
    cohort: Cohort | None


def _plan(
    config: RunConfig,
    steps_of: Callable[[float], Steps],
    protected: _Protected,
    *,
    noises: Sequence[float],
    epsilons: Sequence[float],
) -> Plan:
    rounds = config.federation.num_rounds
    delta = config.privacy.delta or default_delta(protected.population)
    if rounds < 1:
        raise ConfigError(f"Expected at least one round to plan for, got {rounds}. Give --rounds.")

    def row(noise: float) -> Row:
        steps = {step: count * rounds for step, count in steps_of(noise).items()}
        unsampled = {SampledGaussian(step.noise): 0 for step in steps}
        for step, count in steps.items():
            unsampled[SampledGaussian(step.noise)] += count
        divisor = protected.divisor
        return Row(
            noise, epsilon(steps, delta), epsilon(unsampled, delta), noise / divisor, _parameters(divisor, noise)
        )

    def found(asked: float) -> float:
        return calibrated_noise(steps_of, rounds, asked, delta)

    try:
        reference = found(REFERENCE_EPSILON)
    except ConfigError:
        reference = None
    return Plan(
        unit=protected.unit,
        population=protected.population,
        rate=protected.rate,
        rounds=rounds,
        delta=delta,
        is_default_delta=not config.privacy.delta,
        divisor=protected.divisor,
        cohort=protected.cohort,
        mechanisms=tuple((step.noise, step.rate, count) for step, count in steps_of(1.0).items()),
        rows=tuple(row(noise) for noise in [*noises, *map(found, epsilons)]),
        noise_for_reference=reference,
    )


def _parameters(divisor: float, noise: float) -> float:
    """Return d with z √d / (q n) = 1."""
    return (divisor / noise) ** 2


def _cohort(n: int, rate: float, cap: int) -> Cohort:
    from scipy import stats

    return Cohort(n * rate, cap, float(stats.binom.sf(cap, n, rate)), (1 - rate) ** n)
