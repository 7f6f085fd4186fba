# ruff: noqa: N803, N806 - capital letters are the names of the theory
"""L_F(ν), (4): attained by quadratics, never exceeded, and the known constants at ν = 0 and 1."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.errors import ConfigError
from nufed.common.rng import numpy_generator
from nufed.common.theory.bounds import max_curvature, smoothness
from nufed.common.theory.constants import Constants
from tests import oracles
from tests.oracles import logistic_federation, meta_matrix, product_meta_gradient, random_quadratics

sizes = st.floats(0, 5, allow_nan=False)


@given(sizes, sizes, st.floats(0.1, 5))
def test_without_inner_steps_it_is_l(rho, bound, L):
    assert smoothness(Constants(L, rho, bound), 0.3, 0) == L


@given(sizes, sizes, st.floats(0.1, 5))
def test_one_inner_step_at_one_over_l_gives_the_constant_of_fallah_et_al(rho, bound, L):
    expected = 4 * L + rho * bound / L

    assert smoothness(Constants(L, rho, bound), 1 / L, 1) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("nu", range(8))
def test_an_eigenvalue_of_minus_l_attains_it(nu):
    curvature = abs(float(meta_matrix(torch.tensor([[-1.0]]).double(), 1.0, 2 * nu)))

    assert curvature == pytest.approx(smoothness(Constants(1.0, 0.0, 0.0), 1.0, nu), rel=1e-12)


@pytest.mark.parametrize("nu", [0, 1, 2, 5])
@pytest.mark.parametrize("lowest", [-1.0, 0.0, 0.2])
def test_no_quadratic_exceeds_it(nu, lowest):
    A, _ = random_quadratics(100, 4, (lowest, 1.0), seed=nu)
    constants = Constants(L=1.0, rho=0.0, B=0.0, mu=lowest)

    for alpha in (0.2, 0.7, 1.0):
        largest = float(torch.linalg.matrix_norm(meta_matrix(A, alpha, 2 * nu), 2).max())
        assert largest <= smoothness(constants, alpha, nu) * (1 + 1e-12)


@pytest.mark.parametrize("nu", [0, 1, 2, 5])
def test_no_two_points_of_a_logistic_problem_exceed_it(nu):
    rng = numpy_generator(0, "pairs", nu)
    ratios = []

    for problem in logistic_federation(20, 40, 5, 1.0, seed=1):
        constants = Constants(problem.L, problem.rho, problem.B, mu=0.0)
        for share in (0.25, 1.0):
            alpha = share / problem.L
            w = torch.from_numpy(rng.standard_normal(5) * rng.choice([0.1, 1, 4]))
            u = w + torch.from_numpy(rng.standard_normal(5) * rng.choice([1e-4, 0.1, 1]))
            at_w = product_meta_gradient(problem.gradient, problem.hessian, w, alpha, nu)
            at_u = product_meta_gradient(problem.gradient, problem.hessian, u, alpha, nu)
            ratios.append(float((at_w - at_u).norm() / (w - u).norm()) / smoothness(constants, alpha, nu))

    assert max(ratios) <= 1
    assert max(ratios) > {0: 0.5, 1: 0.1, 2: 0.04, 5: 0.01}[nu]  # else the bound says nothing here


@pytest.mark.parametrize(
    ("nu", "general", "shrinking", "convex"),
    [(1, 5, 5, 2), (2, 22, 6.94, 3), (5, 1520, 9.28, 6), (10, 1.57e6, 10.5, 11)],
)
def test_its_growth_in_nu_is_as_documented(nu, general, shrinking, convex):
    constants, flat = Constants(1.0, 1.0, 1.0), Constants(1.0, 1.0, 1.0, mu=0.0)

    found = (smoothness(constants, 1.0, nu), smoothness(constants, 1 / nu, nu), smoothness(flat, 1.0, nu))

    assert found == pytest.approx((general, shrinking, convex), rel=5e-3)


@given(st.integers(1, 300), sizes, sizes)
def test_inner_steps_of_one_over_nu_l_keep_it_bounded_in_nu(nu, rho, bound):
    constants = Constants(2.0, rho, bound)

    assert smoothness(constants, 1 / (2.0 * nu), nu) <= math.e**2 * (2.0 + rho * bound / 2.0)


@given(st.integers(0, 20), st.floats(0.01, 1), st.floats(0.01, 1))
def test_it_grows_with_nu_and_alpha_for_general_losses(nu, alpha, more):
    constants = Constants(1.0, 1.0, 1.0)

    assert smoothness(constants, alpha, nu) < smoothness(constants, alpha, nu + 1)
    assert smoothness(constants, alpha, nu) <= smoothness(constants, alpha + more, nu)


@given(st.integers(0, 20), st.floats(0, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_knowing_a_larger_smallest_eigenvalue_never_makes_it_larger(nu, alpha, one, other):
    low, high = sorted((one, other))

    less, more = (Constants(1.0, 1.0, 1.0, mu=mu) for mu in (low, high))

    assert smoothness(more, alpha, nu) <= smoothness(less, alpha, nu)


@given(st.integers(0, 50), st.floats(0.01, 2))
def test_the_curvature_of_convex_quadratics_is_the_closed_form_and_falls_with_nu(nu, alpha):
    assert max_curvature(alpha, nu) == pytest.approx(oracles.max_curvature(alpha, nu), rel=1e-12)
    assert max_curvature(alpha, nu + 1) < max_curvature(alpha, nu)


def test_the_curvature_without_inner_step_size_is_refused():
    with pytest.raises(ConfigError, match="inner_lr=0"):
        max_curvature(0, 1)
