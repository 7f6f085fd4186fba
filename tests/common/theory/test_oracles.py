# ruff: noqa: N806 - capital letters are the names of the theory
"""The oracles agree with autograd, so that what is measured against them is measured against the truth."""

import pytest
import torch

from nufed.common.rng import numpy_generator
from tests.oracles import (
    as_params,
    fixed_point,
    flatten,
    logistic_federation,
    logistic_loss,
    max_curvature,
    meta_gradient,
    meta_loss,
    meta_matrix,
    meta_optimum,
    product_meta_gradient,
    quadratic_batch,
    quadratic_loss,
    random_quadratics,
    round_map,
    unrolled_meta_gradient,
)

ALPHA = 0.6


@pytest.mark.parametrize("nu", [0, 1, 2, 5])
def test_the_quadratic_meta_gradient_is_what_autograd_finds(nu):
    A, c = random_quadratics(1, 5, (-0.5, 1.0), seed=0)
    w, batch = torch.linspace(-1, 1, 5).double(), quadratic_batch(A[0], c[0])

    found = unrolled_meta_gradient(quadratic_loss, as_params(w, 2, 3), [batch] * nu, batch, ALPHA)

    torch.testing.assert_close(flatten(found), meta_gradient(A[0], c[0], w, ALPHA, 2 * nu), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("nu", [0, 1, 3])
def test_the_quadratic_meta_gradient_is_the_derivative_of_the_meta_loss(nu):
    A, c = random_quadratics(3, 4, (0.1, 1.0), seed=1)
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)

    (found,) = torch.autograd.grad(meta_loss(A, c, w, ALPHA, nu).sum(), w)

    torch.testing.assert_close(found, meta_gradient(A, c, w, ALPHA, 2 * nu).sum(0).detach())


@pytest.mark.parametrize("nu", [0, 1, 2, 5])
def test_products_of_full_hessians_give_what_autograd_finds(nu):
    problem = logistic_federation(1, 30, 5, 1.0, seed=0)[0]
    w = torch.linspace(-1, 1, 5).double()

    found = product_meta_gradient(problem.gradient, problem.hessian, w, ALPHA, nu)

    batch = problem.as_batch()
    expected = unrolled_meta_gradient(logistic_loss, as_params(w), [batch] * nu, batch, ALPHA)
    torch.testing.assert_close(found, flatten(expected), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tau", [1, 2, 5])
@pytest.mark.parametrize("p", [0, 2, 4])
def test_the_fixed_point_is_not_moved_by_a_round_and_with_one_local_step_is_the_optimum(tau, p):
    A, c = random_quadratics(6, 4, (0.1, 1.0), seed=2)

    rest = fixed_point(A, c, ALPHA, 0.7, tau, p)

    torch.testing.assert_close(round_map(A, c, rest, ALPHA, 0.7, tau, p), rest)
    distance = float((rest - meta_optimum(A, c, ALPHA, p)).norm())
    assert distance < 1e-12 if tau == 1 else distance > 1e-4


def test_the_gradient_of_the_mean_meta_loss_vanishes_at_the_meta_optimum():
    A, c = random_quadratics(6, 4, (0.1, 1.0), seed=3)

    optimum = meta_optimum(A, c, ALPHA, 4)

    assert float(meta_gradient(A, c, optimum, ALPHA, 4).sum(0).norm()) < 1e-12


def test_first_order_with_twice_the_steps_is_exact():
    A, c = random_quadratics(2, 4, (0.1, 1.0), seed=4)
    w = torch.zeros(4, dtype=torch.float64)
    inner = w - c

    for _ in range(4):  # first-order, ν = 4: the gradient at the end of the path
        inner = inner - ALPHA * (A @ inner.unsqueeze(-1)).squeeze(-1)

    first_order = (A @ inner.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(first_order, meta_gradient(A, c, w, ALPHA, 2 * 2))


@pytest.mark.parametrize("nu", [1, 2, 5, 10])
def test_no_eigenvalue_has_more_meta_curvature_than_the_closed_form(nu):
    eigenvalues = torch.linspace(0, 1 / ALPHA, 20_001).double()

    curvature = meta_matrix(eigenvalues[:, None, None], ALPHA, 2 * nu).flatten()

    assert float(curvature.max()) == pytest.approx(max_curvature(ALPHA, nu), rel=1e-6)
    assert float(curvature.max()) <= max_curvature(ALPHA, nu) * (1 + 1e-12)


def test_logistic_constants_hold_at_random_points():
    problem = logistic_federation(1, 40, 5, 1.0, seed=5)[0]
    points = 3 * torch.from_numpy(numpy_generator(0, "points").standard_normal((200, 5)))

    for w, u in zip(points[::2], points[1::2], strict=True):
        difference = torch.linalg.matrix_norm(problem.hessian(w) - problem.hessian(u), 2)
        assert float(torch.linalg.matrix_norm(problem.hessian(w), 2)) <= problem.L
        assert float(difference) <= problem.rho * float((w - u).norm())
        assert float(problem.gradient(w).norm()) <= problem.B
        assert problem.gradient_variance(w) <= problem.sigma_g**2
        assert problem.hessian_variance(w) <= problem.sigma_h**2
