"""What a round costs in record-level privacy, against mechanisms written out one by one."""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld

from nufed.common.config import MethodConfig, RunConfig
from nufed.common.privacy.accounting import SampledGaussian
from nufed.common.privacy.record import record_plan, round_steps, spent

Z = 1.7
SHARED = Z / math.sqrt(2)

# options -> (noise, rate, how often in a round), for 100 examples
ROUNDS = {
    "fedavg": ({"num_inner_steps": 0, "batch_size": 10}, [(Z, 0.1, 4)]),
    "first-order": ({"num_inner_steps": 3, "batch_size": 10, "estimator": "first-order"}, [(Z, 0.1, 16)]),
    "exact": ({"num_inner_steps": 3, "batch_size": 10}, [(Z, 0.1, 28)]),
    "exact, sizes of its own": (
        {"num_inner_steps": 2, "batch_size": 10, "outer_batch_size": 25, "hessian_batch_size": 0},
        [(Z, 0.25, 4), (Z, 0.1, 8), (Z, 1.0, 8)],
    ),
    "unrolled": (
        {"num_inner_steps": 3, "batch_size": 10, "estimator": "unrolled"},
        [(Z, 0.1, 4), (SHARED, 0.1, 12)],
    ),
    "exact, coupled": (
        {"num_inner_steps": 1, "batch_size": 500, "hessian_batches": "inner"},
        [(Z, 1.0, 4), (SHARED, 1.0, 4)],
    ),
}


def independent_epsilon(mechanisms, rounds, delta):
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    for noise, rate, count in mechanisms:
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(event, count * rounds)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize(("options", "expected"), ROUNDS.values(), ids=ROUNDS)
def test_a_round_is_composed_of_the_mechanisms_that_the_theory_names(options, expected):
    method = MethodConfig(num_local_steps=4, **options)

    steps = round_steps(method, 100).with_noise(Z)

    assert steps == {SampledGaussian(noise, rate): count for noise, rate, count in expected}
    delta = 100**-1.1
    assert spent([steps] * 3, delta) == pytest.approx(independent_epsilon(expected, 3, delta), rel=5e-3)


def test_sharing_a_batch_costs_what_two_queries_of_one_sample_reveal():
    """δ(ε) of (b/z + g_1, b/z + g_2) with one coin b, by simulation of both numbers, against one of noise z/√2."""
    rate, generator, size = 0.2, np.random.default_rng(0), 1_000_000
    with_it = generator.standard_normal((size, 2)) + (generator.random((size, 1)) < rate) / Z

    ratios = np.log(1 - rate + rate * np.exp(with_it.sum(1) / Z - 1 / Z**2))  # the densities' ratio, in two dimensions

    one_of_half = pld.privacy_loss_distribution.from_gaussian_mechanism(SHARED, sampling_prob=rate)
    apart = pld.privacy_loss_distribution.from_gaussian_mechanism(Z, sampling_prob=rate).self_compose(2)
    for epsilon in (0.1, 0.2, 0.4):
        simulated = float(np.maximum(0, 1 - np.exp(epsilon - ratios)).mean())
        assert simulated == pytest.approx(one_of_half.get_delta_for_epsilon(epsilon), rel=0.02)
        assert simulated > 1.05 * apart.get_delta_for_epsilon(epsilon)  # which would claim too much


def test_noise_is_found_for_all_rounds_that_a_client_may_be_asked_in():
    config = RunConfig().updated(
        {"privacy.dp": "record", "privacy.clip": 1.0, "privacy.epsilon": 2.0, "federation.participation-fraction": 0.1}
    )

    plan = record_plan(config, 300)

    assert 1.98 <= plan.epsilon() <= 2.0
    assert plan.epsilon(3) < plan.epsilon()
    assert plan.delta == pytest.approx(300**-1.1)
    assert record_plan(config.updated({"privacy.noise": 9.0}), 300).noise == 9.0
