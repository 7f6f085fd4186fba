"""What a client's meta steps cost in record-level privacy: the mechanisms that a round is composed of.

docs/theory.md, section 10, proves that the whole of what a client sends is a function of one number for each batch,
b M + N(0, 1), where b says whether a record is in the batch and M² = 1/z² for each query that reads it. A batch that an
inner gradient and its Hessian-vector product share is one such number, of noise z/√2.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from nufed.common.config import MethodConfig, PrivacyConfig, RunConfig
from nufed.common.privacy.accounting import SampledGaussian, calibrated_noise, default_delta, epsilon


@dataclass(frozen=True)
class RecordSteps:
    """The mechanisms of one round of a client, for any z.

    Attributes:
        batches: for each kind of batch: (queries that read one such batch, rate q, batches in a round).
    """

    batches: tuple[tuple[int, float, int], ...]

    def with_noise(self, noise: float) -> dict[SampledGaussian, int]:
        """Return how often each mechanism runs in a round.

        Args:
            noise: z.
        """
        counts: dict[SampledGaussian, int] = {}
        for queries, rate, number in self.batches:
            step = SampledGaussian(noise / math.sqrt(queries), rate)
            counts[step] = counts.get(step, 0) + number
        return counts


def round_steps(method: MethodConfig, num_examples: int) -> RecordSteps:
    """Return what τ meta steps are composed of: ν + 1 gradients each, and ν products where the estimator has them.

    Args:
        method: the run's.
        num_examples: N, examples that batches are drawn from.
    """
    from nufed.common.meta.draw import batch_plan  # loads PyTorch
    from nufed.common.meta.estimators import find_estimator
    from nufed.common.meta.poisson import rate

    estimator = find_estimator(method.estimator)
    plan = batch_plan(method, uses_hessian_batches=estimator.uses_hessian_batches)
    has_products = estimator.differentiates_twice and plan.num_inner > 0
    is_shared = has_products and plan.num_hessian == 0
    kinds = [
        (1, rate(plan.outer_size, num_examples), 1),
        (2 if is_shared else 1, rate(plan.inner_size, num_examples), plan.num_inner),
        (1, rate(plan.hessian_size, num_examples), plan.num_hessian if has_products else 0),
    ]
    tau = method.num_local_steps
    return RecordSteps(tuple((queries, q, tau * number) for queries, q, number in kinds if number))


@dataclass(frozen=True)
class RecordPlan:
    """How one client's records are protected in a run.

    Attributes:
        noise: z.
        steps: how often each mechanism runs in a round.
        delta: δ.
        num_rounds: K, rounds that a client takes part in at most.
    """

    noise: float
    steps: dict[SampledGaussian, int]
    delta: float
    num_rounds: int

    def epsilon(self, num_rounds: int | None = None) -> float:
        """Return ε after so many rounds; None for all of the run's."""
        count = self.num_rounds if num_rounds is None else num_rounds
        return epsilon({step: times * count for step, times in self.steps.items()}, self.delta)


def record_plan(config: RunConfig, num_examples: int) -> RecordPlan:
    """Return how a client with so many examples protects them, z found for `privacy.epsilon` where none is given.

    It is found for K rounds, because a client may be chosen in each.

    Args:
        config: the run's options.
        num_examples: N, examples of its support split.

    Raises:
        ConfigError: no z gives that ε.
    """
    steps = round_steps(config.method, num_examples)
    delta = record_delta(config.privacy, num_examples)
    rounds = config.federation.num_rounds
    noise = config.privacy.noise or _calibrated(steps, rounds, config.privacy.epsilon, delta)
    return RecordPlan(noise, steps.with_noise(noise), delta, rounds)


def record_delta(privacy: PrivacyConfig, num_examples: int) -> float:
    """Return δ of a client: the run's, or N^-1.1."""
    return privacy.delta or default_delta(num_examples)


def spent(rounds: Iterable[dict[SampledGaussian, int]], delta: float) -> float:
    """Return ε of rounds that were composed of these mechanisms."""
    total: dict[SampledGaussian, int] = {}
    for steps in rounds:
        for step, count in steps.items():
            total[step] = total.get(step, 0) + count
    return epsilon(total, delta)


@lru_cache(maxsize=256)
def _calibrated(steps: RecordSteps, num_rounds: int, epsilon_asked: float, delta: float) -> float:
    return calibrated_noise(steps.with_noise, num_rounds, epsilon_asked, delta)
