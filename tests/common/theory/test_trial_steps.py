"""Step sizes from short training, on quadratics whose F is known in closed form, and what is said of bounds."""

from dataclasses import replace

import pytest
import torch

from nufed.common.config import MethodConfig
from nufed.common.errors import ModelError
from nufed.common.examples import Batch, Examples
from nufed.common.theory.advice import recommend, with_trial
from nufed.common.theory.bounds import max_curvature, smoothness
from nufed.common.theory.constants import Constants, MetaStep
from nufed.common.theory.convergence import RunShape
from nufed.common.theory.trial_steps import Trial, TrialClient, curved_path, meta_gradient, trial_steps

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
def test_the_unit_of_steps_is_stable_at_the_largest_curvature_and_not_far_below(nu):
    factors = A * (1 - 0.3 * A) ** (2 * nu)

    assert (
        0.25 / float(factors.max()) <= curved_path(quadratic, POINT, CLIENTS, (nu, 0.3)) <= 0.5 / float(factors.min())
    )


def trial():
    examples = Examples(CLIENTS[0].inputs, CLIENTS[0].targets)
    clients = [TrialClient(name, examples, examples) for name in "ab"]
    return Trial(quadratic, POINT, clients, 1, MethodConfig(num_inner_steps=1, num_local_steps=2), 3, 0)


def test_the_pair_advised_is_the_best_of_those_tried_and_what_it_trains_to_is_what_a_plain_loop_finds():
    found = trial_steps(trial(), 0.5)

    point, ends = POINT["w"], {}
    unit = curved_path(quadratic, POINT, CLIENTS, (1, 0.05))
    for alpha in (0.05, 0.15, 0.5, 1.5, 5.0):
        for beta in (float(f"{unit * factor:.3g}") for factor in (0.03, 0.1, 0.3, 1.0, 3.0)):
            w = point * (1 - beta * A * (1 - alpha * A) ** 2) ** 32  # 16 rounds of 2 steps
            ends[alpha, beta] = float(0.5 * (A * (w * (1 - alpha * A) ** 3) ** 2).sum())
    best = min(ends, key=ends.get)
    assert (found.inner_lr, found.local_lr) == best
    assert found.after == pytest.approx(ends[best], abs=1e-12)
    assert found.after < 1e-3 * found.before
    assert trial_steps(trial(), 0.1, is_given=True).inner_lr == 0.1


def test_a_loss_that_leaves_the_finite_numbers_is_an_error_that_names_alpha():
    with pytest.raises(ModelError, match="--inner-lr"):
        trial_steps(trial(), 1e200, is_given=True)


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
    found = trial_steps(trial(), 0.5)
    tried, flat = (with_trial(long, found, share * long.terms.total) for share in (2.0, 0.5))

    assert short.is_vacuous
    assert short.remarks[0].startswith("The theory has nothing to say here")
    assert not long.is_vacuous
    assert flat.is_vacuous
    assert not tried.is_vacuous
    assert (tried.trial_inner_lr, tried.trial_local_lr) == (found.inner_lr, found.local_lr)
    assert f"Begin with α = {found.inner_lr:.3g}, β = {found.local_lr:.3g}" in tried.remarks[0]
    assert "beyond 2/L" in " ".join(recommend(constants, [1], step, many, 2.5)[0].remarks)
