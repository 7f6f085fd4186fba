"""ε against paths that share nothing with the code: closed forms, Rényi divergences, an inverse Laplace transform."""

import itertools
import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy import stats

from nufed.common.errors import ConfigError
from nufed.common.privacy.accounting import Account, SampledGaussian, calibrated_noise, default_delta, epsilon
from tests.common.privacy import oracle

TABLE = [  # n, cohort, rounds, z, ε by privacy loss distributions, ε by Rényi divergences, ε where all take part
    (40, 20, 150, 4.0, 3.86, 4.73, 10.4),
    (200, 20, 200, 1.0, 6.31, 7.48, 138),
    (1000, 100, 200, 1.0, 7.57, 8.72, 146),
    (3400, 100, 1000, 0.8, 8.22, 9.31, 926),
]

SETTINGS = [  # n, cohort, rounds, z, cap (0: none), beside the table's
    *((n, cohort, rounds, z, 2 * cohort) for n, cohort, rounds, z, *_ in TABLE),
    (40, 20, 150, 4.0, 22),
    (200, 20, 200, 1.0, 21),
    (100, 10, 60, 1.5, 12),
    (60, 30, 10, 2.0, 31),
    (500, 50, 100, 0.6, 0),
    (500, 5, 2000, 0.7, 0),
    (10_000, 100, 500, 0.5, 0),
    (10_000, 1000, 50, 5.0, 0),
    (1000, 10, 10_000, 1.0, 0),
    (1000, 500, 400, 20.0, 0),
    (50, 25, 1000, 60.0, 0),
]


def step_of(n, cohort, z, cap=0):
    return SampledGaussian(z, cohort / n, n, cap)


@pytest.mark.parametrize(("n", "cohort", "rounds", "z", "composed", "renyi", "everybody"), TABLE)
def test_epsilon_of_the_table(n, cohort, rounds, z, composed, renyi, everybody):
    """dp-accounting leaves out orders whose divergence it does not find, so its Rényi bound is above the best one."""
    delta = default_delta(n)
    spent = epsilon({step_of(n, cohort, z): rounds}, delta)
    accountant = RdpAccountant()
    accountant.compose(PoissonSampledDpEvent(cohort / n, GaussianDpEvent(z)), rounds)

    above, below = oracle.deltas(z, cohort / n, rounds, [spent, 0.997 * spent])
    assert above <= delta <= below
    assert spent == pytest.approx(composed, abs=0.006)
    assert spent < oracle.renyi(z, cohort / n, rounds, delta) <= accountant.get_epsilon(delta)
    assert accountant.get_epsilon(delta) == pytest.approx(renyi, abs=0.006)
    assert epsilon({SampledGaussian(z): rounds}, delta) == pytest.approx(everybody, rel=0.005)


@pytest.mark.parametrize(("n", "cohort", "rounds", "z", "cap"), SETTINGS)
def test_epsilon_is_at_most_three_thousandths_above_the_exact_one(n, cohort, rounds, z, cap):
    delta = default_delta(n)
    spent = epsilon({step_of(n, cohort, z, cap): rounds}, delta)

    truncated = (n, cap) if cap < n else (0, 0)
    above, below = oracle.deltas(z, cohort / n, rounds, [spent, 0.997 * spent], truncated=truncated)

    assert above <= delta <= below


@pytest.mark.parametrize("delta", [1e-10, 1e-5, 0.01, 0.4])
@pytest.mark.parametrize(("z", "rounds"), [(0.02, 1), (0.5, 1), (1.0, 7), (3.0, 10), (100.0, 1000), (1e5, 3)])
def test_epsilon_of_a_gaussian_that_all_take_part_in_is_the_closed_form(z, rounds, delta):
    spent = epsilon({SampledGaussian(z): rounds}, delta)
    exact = oracle.gaussian(z, rounds, delta)

    assert exact - 1e-9 <= spent <= 1.003 * exact + 2e-4 / z


@pytest.mark.parametrize("delta", [1e-7, 1e-3, 0.1, 0.999])
@pytest.mark.parametrize(("z", "rate"), [(0.3, 0.5), (1.0, 0.01), (1.0, 0.9), (0.1, 0.2), (30.0, 0.5)])
def test_epsilon_of_one_round_is_the_closed_form(z, rate, delta):
    spent = epsilon({SampledGaussian(z, rate): 1}, delta)
    exact = oracle.single(z, rate, delta)

    assert exact - 1e-9 <= spent <= 1.003 * exact + 0.005 * rate


@pytest.mark.parametrize("absent", [True, False])
@pytest.mark.parametrize(("rate", "cap", "z"), [(0.5, 1, 1.0), (0.5, 2, 0.7), (0.9, 2, 2.0), (1.0, 3, 1.0)])
def test_a_capped_sample_of_any_values_stays_within_epsilon(rate, cap, z, absent):
    """Of four units with values of length 1, one is absent, or zero; every sample and choice is enumerated."""
    others, x = 3, np.linspace(-14 * z - 5, 14 * z + 5, 8001)
    spent = {delta: epsilon({SampledGaussian(z, rate, 1 + others, cap): 1}, delta) for delta in (0.3, 0.03, 1e-4)}

    def density(values):
        total = np.zeros_like(x)
        for drawn in itertools.product([0, 1], repeat=len(values)):
            chance = math.prod(rate if taken else 1 - rate for taken in drawn)
            sample = [value for value, taken in zip(values, drawn, strict=True) if taken]
            choices = list(itertools.combinations(sample, min(cap, len(sample))))
            total += sum(chance / len(choices) * stats.norm.pdf(x, sum(choice), z) for choice in choices)
        return total

    for rest in itertools.combinations_with_replacement([-1.0, 0.0, 1.0], others):
        within, without = density([1.0, *rest]), density([*rest] if absent else [0.0, *rest])
        for delta, value in spent.items():
            for p, q in ((within, without), (without, within)):
                assert np.trapezoid(np.maximum(p - math.exp(value) * q, 0), x) <= delta + 1e-9


def test_a_cap_that_nothing_reaches_costs_nothing_and_a_tight_one_does():
    free, loose, tight = (epsilon({step_of(200, 20, 1.0, cap): 200}, 1e-3) for cap in (0, 60, 21))

    assert loose == pytest.approx(free, rel=1e-3)
    assert tight > 2 * free


def test_steps_of_several_kinds_compose():
    """One Gaussian with the precision of all: what everybody takes part in adds up in 1 / z²."""
    kinds = {SampledGaussian(2.0): 8, SampledGaussian(3.0): 9, SampledGaussian(5.0): 50, SampledGaussian(10.0): 100}
    exact = oracle.gaussian(1.0, sum(count / step.noise**2 for step, count in kinds.items()), 1e-5)
    account = Account()
    for step, count in kinds.items():
        account.add(step, count)

    assert exact <= account.epsilon(1e-5) <= 1.004 * exact


def test_what_an_account_says_never_falls_and_is_what_its_steps_cost():
    first, then = step_of(200, 20, 1.0, 40), step_of(180, 20, 1.2, 40)
    account = Account()
    spent = [account.epsilon(1e-3)]
    for step in [first] * 8 + [then, first, then]:
        expected = account.with_more(step).epsilon(1e-3)
        account.add(step)
        spent.append(account.epsilon(1e-3))
        assert spent[-1] == expected
    read = Account.from_json(account.to_json())

    assert spent == sorted(spent)
    assert spent[0] == 0
    assert read.steps == account.steps == {first: 9, then: 2}
    assert read.epsilon(1e-3) == pytest.approx(spent[-1], rel=1e-3)


def test_no_rounds_cost_nothing_and_no_noise_costs_everything():
    assert epsilon({SampledGaussian(1.0): 0}, 1e-5) == 0
    assert epsilon({SampledGaussian(0.0, rate=0.0): 10}, 1e-5) == 0
    assert epsilon({SampledGaussian(1.0): 5, SampledGaussian(0.0, 0.1): 1}, 1e-5) == math.inf
    assert epsilon({SampledGaussian(1.0, 1.0, population=1, cap=1): 1}, 0.5) == pytest.approx(
        oracle.gaussian(1.0, 1, 0.5), rel=0.003, abs=1e-6
    )
    assert [default_delta(n) for n in (0, 1, 1000)] == [0.5, 0.5, pytest.approx(1000**-1.1)]


@pytest.mark.parametrize(
    ("asked", "family"),
    [
        (0.1, lambda z: step_of(200, 20, z, 40)),
        (50.0, lambda z: step_of(200, 20, z)),
        (2.0, lambda z: {step_of(900, 30, z): 4, step_of(900, 90, z): 3}),
    ],
)
def test_calibrated_noise_spends_what_was_asked(asked, family):
    noise = calibrated_noise(family, 30, asked, 1e-4)
    steps = family(noise)
    counted = {steps: 1} if isinstance(steps, SampledGaussian) else steps

    assert 0.99 * asked <= epsilon({step: 30 * count for step, count in counted.items()}, 1e-4) <= asked


@pytest.mark.parametrize(
    ("rounds", "asked", "delta", "message"),
    [
        (10, 1e-9, 1e-10, "no noise multiplier from 0.01 to 1e.06 gives epsilon = 1e-09.*fewer rounds"),
        (1, 1e9, 1e-5, "no noise multiplier.*z = 0.01 gives .*protects nobody"),
        (1, 1.0, 0.9, "no noise multiplier.*z = 0.01 gives 0"),
        (0, 1.0, 1e-5, "one round or more, got 0"),
        (10, 0.0, 1e-5, "epsilon must be a positive number.*got 0"),
        (10, math.inf, 1e-5, "epsilon must be a positive number.*got inf"),
        (10, 1.0, 0.0, "delta must lie between 1e-12 and 1, got 0"),
        (10, 1.0, 1.0, "delta must lie between 1e-12 and 1, got 1"),
        (10, 1.0, math.nan, "delta must lie between 1e-12 and 1, got nan"),
    ],
)
def test_impossible_asks_are_refused(rounds, asked, delta, message):
    with pytest.raises(ConfigError, match=message):
        calibrated_noise(lambda z: SampledGaussian(z, 0.1), rounds, asked, delta)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"noise": -1.0}, "noise multiplier must be a number from 0, got -1"),
        ({"noise": math.nan}, "noise multiplier must be a number from 0, got nan"),
        ({"noise": 1.0, "rate": 1.5}, "between 0 and 1, got 1.5"),
        ({"noise": 1.0, "cap": 3}, "a cap of 3 units needs the population"),
        ({"noise": 1.0, "population": -1}, "at least 0, got -1 and 0"),
        ({"noise": "much"}, "a row of a privacy account has a step's values and a count"),
        ({"noise": 1.0, "size": 3}, "a row of a privacy account has a step's values and a count"),
    ],
)
def test_what_is_no_step_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Account.from_json([{**values, "count": 1}])


def test_what_was_spent_is_not_taken_back():
    with pytest.raises(ConfigError, match="cannot be taken back, got -1"):
        Account().add(SampledGaussian(1.0), -1)
    with pytest.raises(ConfigError, match="counted from 0, got -2"):
        epsilon({SampledGaussian(1.0): -2}, 1e-5)
