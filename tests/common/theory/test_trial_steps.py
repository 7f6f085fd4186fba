"""β from how F curves along trial steps, on quadratics whose F is known in closed form, and what is said of bounds."""

from dataclasses import replace

import pytest
import torch

from nufed.common.errors import ModelError
from nufed.common.examples import Batch
from nufed.common.theory.advice import recommend, with_trial
from nufed.common.theory.bounds import max_curvature, smoothness
from nufed.common.theory.constants import Constants, MetaStep
from nufed.common.theory.convergence import RunShape
from nufed.common.theory.trial_steps import meta_gradient, trial_steps

A = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
POINT = {"w": torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)}
CLIENTS = [Batch(torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64))] * 2


def quadratic(params, batch):
    return 0.5 * (A * params["w"] ** 2).sum()


@pytest.mark.parametrize("nu", [0, 1, 4])
def test_the_gradient_is_that_of_the_loss_after_nu_steps(nu):
    value, gradient = meta_gradient(quadratic, POINT, CLIENTS, nu, 0.3)

    factors = A * (1 - 0.3 * A) ** (2 * nu)
    assert value == pytest.approx(float(0.5 * (factors * POINT["w"] ** 2).sum()))
    assert torch.allclose(gradient["w"], factors * POINT["w"])


@pytest.mark.parametrize("nu", [0, 1, 4])
def test_the_step_size_is_stable_at_the_largest_curvature_and_not_far_below(nu):
    factors = A * (1 - 0.3 * A) ** (2 * nu)

    found = trial_steps(quadratic, POINT, CLIENTS, (nu, 0.3))

    assert float(factors.min()) <= found.smoothness <= float(factors.max()) * (1 + 1e-9)
    assert 0.1 / float(factors.max()) <= found.local_lr <= 1 / float(factors.max())
    assert found.after < 0.2 * found.before


def test_a_loss_that_leaves_the_finite_numbers_is_an_error_that_names_alpha():
    with pytest.raises(ModelError, match="--inner-lr"):
        trial_steps(quadratic, POINT, CLIENTS, (2000, 3.0))


def test_convex_quadratics_have_the_curvature_of_15_and_others_do_not():
    constants = Constants(L=1.0, rho=0.0, B=1.0, mu=0.0)

    assert smoothness(constants, 1.0, 5) == pytest.approx(max_curvature(1.0, 5)) == pytest.approx(0.035, abs=1e-3)
    assert smoothness(constants, 0.001, 1) <= 1.0
    assert smoothness(replace(constants, rho=0.1), 1.0, 5) > 1.0
    assert smoothness(replace(constants, mu=-0.1), 0.9, 5) >= 1.0


def test_a_bound_that_says_less_than_the_start_is_called_nothing_to_say():
    constants, step = Constants(L=1.0, rho=0.0, B=1.0, gamma_g=0.01, mu=0.0), MetaStep(1, 0.5)
    few, many = (RunShape(1.0, 0.1, 1, rounds, 10, 10) for rounds in (5, 100_000))

    (short,), (long,) = recommend(constants, [1], step, few), recommend(constants, [1], step, many)
    trial = trial_steps(quadratic, POINT, CLIENTS, (1, 0.5))
    flat = with_trial(long, replace(trial, gradient=0.5 * long.terms.total))

    assert short.is_vacuous
    assert short.remarks[0].startswith("The theory has nothing to say here")
    assert not long.is_vacuous
    assert flat.is_vacuous
    assert with_trial(long, trial).trial_lr == trial.local_lr
    assert "Begin with β" in with_trial(long, trial).remarks[0]
    assert "beyond 2/L" in " ".join(recommend(constants, [1], step, many, 2.5)[0].remarks)
