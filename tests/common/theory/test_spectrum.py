"""Lanczos' extremes against full spectra, and refusal where it has not converged."""

import pytest
import torch

from nufed.common.errors import ModelError, RunError
from nufed.common.rng import torch_generator
from nufed.common.theory.spectrum import (
    Accuracy,
    extreme_eigenvalues,
    gradient_and_hessian,
    operator_norm,
    second_moment,
)
from tests.oracles import (
    as_params,
    flatten,
    logistic_federation,
    logistic_loss,
    quadratic_batch,
    quadratic_loss,
    random_quadratics,
)


def generator():
    return torch_generator(0, "test")


@pytest.mark.parametrize("bounds", [(-2.0, 1.0), (0.0, 1.0), (-3.0, -1.0)])
def test_extremes_are_those_of_the_full_spectrum(bounds):
    matrix = random_quadratics(1, 40, bounds, seed=0)[0][0]
    values = torch.linalg.eigvalsh(matrix)

    found = extreme_eigenvalues(lambda v: matrix @ v, 40, Accuracy(tolerance=1e-8), generator())

    assert found.converged
    assert found.smallest == pytest.approx(float(values[0]), abs=1e-7)
    assert found.largest == pytest.approx(float(values[-1]), abs=1e-7)
    assert found.num_products <= 40


@pytest.mark.parametrize("products", [1, 3, 10, 30])
def test_an_eigenvalue_lies_within_the_residual_of_each_extreme_at_any_time(products):
    matrix = random_quadratics(1, 60, (-1.0, 1.0), seed=1)[0][0]
    values = torch.linalg.eigvalsh(matrix)

    found = extreme_eigenvalues(lambda v: matrix @ v, 60, Accuracy(1e-12, products), generator())

    for ritz in (found.smallest, found.largest):
        assert float((values - ritz).abs().min()) <= found.residual + 1e-12
    assert values[0] - 1e-12 <= found.smallest <= found.largest <= values[-1] + 1e-12


def test_isolated_extremes_take_far_fewer_products_than_dimensions():
    spectrum = torch.cat([torch.tensor([-5.0, 9.0]), torch.linspace(0, 1, 298)]).double()

    found = extreme_eigenvalues(lambda v: spectrum * v, 300, Accuracy(1e-6), generator())

    assert found.converged
    assert found.num_products < 30
    assert (found.smallest, found.largest) == pytest.approx((-5.0, 9.0))


def test_eigenvalues_that_did_not_converge_are_refused():
    matrix = random_quadratics(1, 60, (-1.0, 1.0), seed=1)[0][0]

    with pytest.raises(RunError, match=r"a matrix to within 1e-06 .* after 5 products .* Raise max_products"):
        operator_norm(lambda v: matrix @ v, 60, Accuracy(1e-6, 5), generator(), "a matrix")


def test_the_zero_operator_has_norm_zero():
    found = operator_norm(torch.zeros_like, 5, Accuracy(), generator(), "nothing")

    assert (found.norm, found.num_products) == (0, 1)


def test_gradient_and_products_are_those_of_the_full_hessian():
    problem = logistic_federation(1, 30, 6, 1.0, seed=0)[0]
    w, v = torch.linspace(-1, 1, 6).double(), torch.linspace(1, 2, 6).double()

    gradient, hessian = gradient_and_hessian(logistic_loss, as_params(w, 2, 4), problem.as_batch())

    torch.testing.assert_close(gradient, problem.gradient(w))
    torch.testing.assert_close(hessian(v), problem.hessian(w) @ v)
    torch.testing.assert_close(hessian(2 * v), 2 * problem.hessian(w) @ v)  # the graph serves more than once


def test_a_linear_loss_has_no_hessian():
    def linear(params, batch):
        return flatten(params) @ batch.targets

    _, hessian = gradient_and_hessian(
        linear, as_params(torch.ones(3).double()), quadratic_batch(None, torch.ones(3).double())
    )

    assert float(hessian(torch.ones(3).double()).norm()) == 0


def test_a_loss_that_is_not_finite_is_refused():
    matrices, centers = random_quadratics(1, 3, (0.1, 1.0), seed=0)
    params = as_params(torch.full((3,), float("inf"), dtype=torch.float64))

    with pytest.raises(ModelError, match="finite loss and gradient"):
        gradient_and_hessian(quadratic_loss, params, quadratic_batch(matrices[0], centers[0]))


def test_the_second_moment_is_the_mean_square_of_deviations():
    matrices, _ = random_quadratics(5, 7, (-1.0, 1.0), seed=2)
    deviations = matrices - matrices.mean(0)
    v = torch.linspace(-1, 1, 7).double()

    found = second_moment([lambda x, m=matrix: m @ x for matrix in matrices])(v)

    torch.testing.assert_close(found, (deviations @ deviations).mean(0) @ v)
