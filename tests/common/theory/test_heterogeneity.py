"""γ_F(ν), (10): never exceeded, and the known constants at ν = 0 and 1."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.rng import numpy_generator
from nufed.common.theory.bounds import heterogeneity
from nufed.common.theory.constants import Constants
from tests.common.theory.simulation import Simulation
from tests.oracles import logistic_federation, meta_gradient, random_quadratics

nonnegative = st.floats(0, 5)


def root_mean_square(rows):
    return float((rows - rows.mean(0)).square().sum(1).mean().sqrt())


def hessian_spread(hessians):
    """Return γ_H: sup over unit u of the root mean square of ‖(H_i - H̄)u‖."""
    deviation = hessians - hessians.mean(0)
    return float(torch.linalg.matrix_norm((deviation @ deviation).mean(0), 2).sqrt())


def along_mean_path(gradients, hessians, w, alpha, nu):
    """Return (γ_G, γ_H, ‖∇f‖ at the end) along the path of the mean loss, which is all that the proof uses."""
    spreads = []
    for _ in range(nu + 1):
        at_point = gradients(w)
        spreads.append((root_mean_square(at_point), hessian_spread(hessians(w))))
        last, w = float(at_point.mean(0).norm()), w - alpha * at_point.mean(0)
    return *(max(column) for column in zip(*spreads, strict=True)), last


@given(nonnegative, st.floats(0, 1))
def test_without_inner_steps_it_is_gamma_g(gamma_g, alpha):
    assert heterogeneity(Constants(1.0, 1.0, 1.0, gamma_g=gamma_g), alpha, 0) == gamma_g


@given(nonnegative, nonnegative, nonnegative)
def test_one_inner_step_at_one_over_l_gives_four_gamma_g_and_alpha_b_gamma_h(gamma_g, gamma_h, bound):
    constants = Constants(1.0, 3.0, bound, gamma_g=gamma_g, gamma_h=gamma_h)

    found = heterogeneity(constants, 1.0, 1)

    assert found == pytest.approx(4 * gamma_g + bound * gamma_h)
    # the constant of Fallah et al. as remembered
    assert found**2 <= (3 * bound**2 * gamma_h**2 + 192 * gamma_g**2) * (1 + 1e-12)


@pytest.mark.parametrize("lowest", [-0.5, 0.05])
@pytest.mark.parametrize("nu", [0, 1, 2, 5])
def test_no_federation_of_quadratics_exceeds_it(nu, lowest):
    shares = []

    for seed in range(40):
        matrices, centers = random_quadratics(8, 5, (lowest, 1.0), seed)
        w = torch.from_numpy(numpy_generator(seed, "start").standard_normal(5))
        for alpha in (0.3, 1.0):
            gamma_g, gamma_h, last = along_mean_path(
                lambda x, a=matrices, c=centers: meta_gradient(a, c, x, 0.0, 0),
                lambda _, a=matrices: a,
                w,
                alpha,
                nu,
            )
            constants = Constants(1.0, 0.0, last, gamma_g=gamma_g, gamma_h=gamma_h, mu=lowest)
            measured = root_mean_square(meta_gradient(matrices, centers, w, alpha, 2 * nu))
            shares.append(measured / heterogeneity(constants, alpha, nu))

    assert 0.05 < max(shares) <= 1 + 1e-12


@pytest.mark.parametrize("nu", [0, 1, 2, 5])
def test_no_federation_of_logistic_problems_exceeds_it(nu):
    shares = []

    for seed in range(15):
        problems = logistic_federation(8, 40, 5, 1.0, seed)
        smooth = max(problem.L for problem in problems)
        w = 2 * torch.from_numpy(numpy_generator(seed, "start").standard_normal(5))
        for alpha in (0.3 / smooth, 1 / smooth):
            gamma_g, gamma_h, last = along_mean_path(
                lambda x, ps=problems: torch.stack([p.gradient(x) for p in ps]),
                lambda x, ps=problems: torch.stack([p.hessian(x) for p in ps]),
                w,
                alpha,
                nu,
            )
            rho = max(problem.rho for problem in problems)
            constants = Constants(smooth, rho, last, gamma_g=gamma_g, gamma_h=gamma_h, mu=0.0)
            measured = root_mean_square(Simulation(problems, alpha, seed=0).client_meta_gradients(w, nu))
            shares.append(measured / heterogeneity(constants, alpha, nu))

    assert 0.05 < max(shares) <= 1 + 1e-12


@given(st.integers(0, 20), nonnegative, nonnegative, st.floats(0, 1))
def test_it_grows_with_the_clients_differences_and_vanishes_with_them(nu, gamma_g, gamma_h, alpha):
    equal = Constants(1.0, 1.0, 1.0)
    some = Constants(1.0, 1.0, 1.0, gamma_g=gamma_g, gamma_h=gamma_h)
    more = Constants(1.0, 1.0, 1.0, gamma_g=gamma_g + 1, gamma_h=gamma_h + 1)

    assert heterogeneity(equal, alpha, nu) == 0
    assert heterogeneity(some, alpha, nu) < heterogeneity(more, alpha, nu)
