"""Measured constants against closed forms, in both precisions, and the same for the same seed."""

from dataclasses import replace

import pytest
import torch

from nufed.common.config import ModelConfig
from nufed.common.errors import ConfigError, RunError
from nufed.common.examples import Batch, TaskInfo
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.rng import torch_generator
from nufed.common.task import make_loss
from nufed.common.theory.estimate import estimate_constants
from nufed.common.theory.measure import Probe
from tests.common.theory.test_heterogeneity import hessian_spread, root_mean_square
from tests.oracles import (
    as_params,
    logistic_federation,
    logistic_loss,
    quadratic_batch,
    quadratic_loss,
    random_quadratics,
)

DIM = 5
SHARP = Probe(seed=3, tolerance=1e-6, num_examples=1000, measure_kappa=True)


@pytest.fixture(scope="module")
def problems():
    return logistic_federation(4, 30, DIM, 1.0, seed=0)


@pytest.fixture(scope="module")
def point():
    return torch.linspace(-1, 1, DIM).double()


def measure(problems, point, probe):
    return estimate_constants(logistic_loss, [as_params(point, 2, 3)], [p.as_batch() for p in problems], probe)


def test_at_one_point_everything_is_what_full_hessians_give(problems, point):
    found = measure(problems, point, SHARP).constants

    hessians = torch.stack([problem.hessian(point) for problem in problems])
    gradients = torch.stack([problem.gradient(point) for problem in problems])
    single = [p.inputs.unsqueeze(2) * p.inputs.unsqueeze(1) * p._weights(point)[:, None, None] for p in problems]
    assert pytest.approx(float(torch.linalg.matrix_norm(hessians, 2).max()), rel=1e-5) == found.L
    assert found.mu == pytest.approx(float(torch.linalg.eigvalsh(hessians).min()), rel=1e-4)
    assert pytest.approx(float(gradients.norm(dim=1).max())) == found.B
    assert found.sigma_g == pytest.approx(max(p.gradient_variance(point) for p in problems) ** 0.5)
    assert found.sigma_h == pytest.approx(max(hessian_spread(matrices) for matrices in single), rel=1e-5)
    assert found.gamma_g == pytest.approx(root_mean_square(gradients))
    assert found.gamma_h == pytest.approx(hessian_spread(hessians), rel=1e-5)


def test_no_measured_constant_exceeds_its_global_bound(problems, point):
    found = measure(problems, point, replace(SHARP, num_inner_steps=3, inner_lr=1.0)).constants

    for name in ("L", "B", "rho", "kappa", "sigma_g", "sigma_h"):
        bound = max(getattr(problem, name) for problem in problems)
        assert 0.01 * bound < getattr(found, name) <= bound


def test_quadratics_have_neither_rho_nor_kappa():
    matrices, centers = random_quadratics(3, DIM, (-0.5, 1.0), seed=1)
    batches = [quadratic_batch(A, c) for A, c in zip(matrices, centers, strict=True)]

    def loss(params, batch):  # single examples of a quadratic mean nothing, so that the noise is taken of the whole
        return (
            quadratic_loss(params, batch)
            if batch.inputs.shape == (DIM, DIM)
            else 0 * quadratic_loss(params, batches[0])
        )

    found = estimate_constants(loss, [as_params(torch.ones(DIM).double())], batches, SHARP).constants

    assert pytest.approx(float(torch.linalg.eigvalsh(matrices).abs().max()), rel=1e-5) == found.L
    assert found.mu == pytest.approx(float(torch.linalg.eigvalsh(matrices).min()), rel=1e-4)
    assert found.rho < 1e-9
    assert found.kappa < 1e-7


def test_equal_clients_have_no_heterogeneity(problems, point):
    found = measure([problems[0]] * 3, point, SHARP).constants

    assert found.gamma_g < 1e-12
    assert found.gamma_h < 1e-6


def test_gradients_are_reported_for_each_step_of_the_inner_path(problems, point):
    estimate = measure(problems, point, replace(SHARP, num_inner_steps=2, inner_lr=0.5))
    w, norms = [point] * 4, []

    for _ in range(3):
        gradients = [problem.gradient(x) for problem, x in zip(problems, w, strict=True)]
        norms.append(max(float(gradient.norm()) for gradient in gradients))
        w = [x - 0.5 * gradient for x, gradient in zip(w, gradients, strict=True)]

    assert estimate.gradient_by_step == pytest.approx(norms)
    assert estimate.after(2).B == estimate.gradient_by_step[2] < estimate.constants.B
    assert estimate.after(7) == estimate.constants


def test_a_known_smallest_eigenvalue_is_taken_over(problems, point):
    assert measure(problems, point, replace(SHARP, mu=0.0)).constants.mu == 0.0


def test_the_same_seed_measures_the_same_and_another_looks_elsewhere(problems, point):
    probe = Probe(seed=1, num_examples=10)

    first, second = measure(problems, point, probe), measure(problems, point, probe)

    assert first == second
    assert measure(problems, point, replace(probe, seed=2)).constants != first.constants


def test_a_part_of_the_examples_estimates_the_noise_of_all(point):
    many = logistic_federation(1, 400, DIM, 1.0, seed=0)
    whole = measure(many, point, replace(SHARP, tolerance=0.01, num_directions=0)).constants

    parts = [measure(many, point, Probe(seed=seed, num_examples=100, num_directions=0)).constants for seed in range(4)]

    assert sum(part.sigma_g for part in parts) / len(parts) == pytest.approx(whole.sigma_g, rel=0.1)
    assert sum(part.sigma_h for part in parts) / len(parts) == pytest.approx(whole.sigma_h, rel=0.1)


def test_single_and_double_precision_of_a_small_network_agree():
    task = TaskInfo("classification", (6,), 3)
    found = {}

    for dtype in ("float32", "float64"):
        model = build_model(ModelConfig(hidden_sizes="7", activation="tanh", dtype=dtype), task, seed=0)
        generator = torch_generator(0, "inputs")
        batches = [
            Batch(
                torch.randn(25, 6, generator=generator, dtype=torch.float64).to(getattr(torch, dtype)),
                torch.arange(25) % 3,
            )
            for _ in range(2)
        ]
        probe = Probe(num_inner_steps=2, inner_lr=0.3, num_directions=0)
        found[dtype] = vars(estimate_constants(make_loss(model, task), [model_params(model)], batches, probe).constants)

    for name, value in found["float64"].items():
        assert value == found["float32"][name] or found["float32"][name] == pytest.approx(value, rel=0.05)


def test_an_eigenvalue_that_does_not_converge_stops_the_measurement(problems, point):
    with pytest.raises(RunError, match="a Hessian"):
        measure(problems, point, replace(SHARP, max_products=2))


def test_a_loss_without_curvature_is_refused(problems):
    with pytest.raises(ConfigError, match="all Hessians measured are 0"):
        estimate_constants(
            lambda params, _: params["part0"].sum(),
            [as_params(torch.ones(3).double())],
            [problems[0].as_batch()],
            Probe(),
        )


@pytest.mark.parametrize("empty", ["points", "clients"])
def test_measuring_nothing_is_refused(problems, point, empty):
    points, clients = [as_params(point)], [problems[0].as_batch()]

    with pytest.raises(ConfigError, match="at least one point and one client"):
        estimate_constants(
            logistic_loss, [] if empty == "points" else points, [] if empty == "clients" else clients, Probe()
        )


@pytest.mark.parametrize(
    ("field", "value"), [("num_examples", 1), ("radius", 0.0), ("tolerance", 1.0), ("num_inner_steps", -1)]
)
def test_probes_that_measure_nothing_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field}="):
        Probe(**{field: value})
