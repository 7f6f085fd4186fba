"""ε against paths that share nothing with the code: closed forms, Rényi divergences, the mechanism's own integrals."""

import pytest

from nufed.common.privacy.accounting import Account, SampledGaussian, calibrated_noise, default_delta, epsilon

TABLE = [  # n, cohort, rounds, z, ε by privacy loss distributions, ε by Rényi divergences
    (40, 20, 150, 4.0, 3.86, 4.73),
    (200, 20, 200, 1.0, 6.31, 7.48),
    (1000, 100, 200, 1.0, 7.57, 8.72),
    (3400, 100, 1000, 0.8, 8.22, 9.31),
]


@pytest.mark.parametrize(("n", "cohort", "rounds", "z", "expected", "_renyi"), TABLE)
def test_epsilon_is_what_was_computed_elsewhere(n, cohort, rounds, z, expected, _renyi):
    assert epsilon({SampledGaussian(z, cohort / n): rounds}, default_delta(n)) == pytest.approx(expected, abs=0.006)


def test_an_account_counts_what_was_added():
    step = SampledGaussian(1.0, 0.1, 200, 40)
    account = Account()
    spent = [account.epsilon(1e-3)]
    for _ in range(5):
        account.add(step)
        spent.append(account.epsilon(1e-3))

    assert spent == sorted(spent)
    assert spent[0] == 0
    assert spent[-1] == epsilon({step: 5}, 1e-3)
    assert Account.from_json(account.to_json()).steps == {step: 5}


def test_calibrated_noise_spends_what_was_asked():
    def steps_of(z):
        return SampledGaussian(z, 0.1, 200, 40)

    noise = calibrated_noise(steps_of, 200, 2.0, default_delta(200))

    assert 1.98 <= epsilon({steps_of(noise): 200}, default_delta(200)) <= 2.0
