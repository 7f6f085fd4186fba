"""Claims about the sources that make their examples: sinusoid, sensors and quadratic."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from nufed.common.config import DataConfig, ModelConfig
from nufed.common.data import load_federation, quadratic_problems
from nufed.common.models import build_model
from nufed.common.rng import numpy_generator, torch_generator
from nufed.common.settings import Settings
from nufed.common.task import make_loss

QUADRATIC = DataConfig(source="quadratic", num_clients=6, num_new_clients=2)
SINUSOID = DataConfig(source="sinusoid", num_clients=200, num_new_clients=0)


def load(config, seed=0):
    return load_federation(config, seed=seed, dtype=torch.float64, settings=Settings())


def quadratic_loss(loss, name, batch, point):
    return loss({name: point[None]}, batch)


def test_the_linear_models_loss_is_the_known_quadratic_on_every_split():
    """Mean loss, gradient and Hessian of each client are those of (w - c)ᵀ A (w - c) / 2, to 1e-12."""
    federation = load(QUADRATIC)
    model = build_model(ModelConfig(name="linear", dtype="float64"), federation.task, seed=0)
    matrices, centers = quadratic_problems(8, seed=0)
    loss = make_loss(model, federation.task)
    (name,) = dict(model.named_parameters())
    w = torch.randn(6, generator=torch_generator(0, "test"), dtype=torch.float64)

    for client, matrix, center in zip(federation.clients, matrices, centers, strict=True):
        for examples in filter(len, (client.support, client.validation, client.test)):
            value = partial(quadratic_loss, loss, name, examples.as_batch())
            expected = 0.5 * (w - center) @ matrix @ (w - center)
            assert float(value(w)) == pytest.approx(float(expected), rel=1e-12)
            torch.testing.assert_close(torch.func.grad(value)(w), matrix @ (w - center), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(torch.func.jacrev(torch.func.grad(value))(w), matrix, rtol=1e-12, atol=1e-12)


def test_eigenvalues_lie_between_a_tenth_and_one_and_clients_differ():
    """Log-uniform eigenvalues: half of them below the geometric mean of the range."""
    matrices, centers = quadratic_problems(300, seed=0)

    eigenvalues = torch.linalg.eigvalsh(matrices)

    assert float(eigenvalues.min()) >= 0.1
    assert float(eigenvalues.max()) <= 1.0
    assert float((eigenvalues < math.sqrt(0.1)).double().mean()) == pytest.approx(0.5, abs=0.05)
    assert float(centers.std()) == pytest.approx(1.0, abs=0.1)


def test_quadratic_splits_have_as_many_examples_as_dimensions():
    """The Gram matrix of d rows is A exactly; new clients have no validation split."""
    clients = load(QUADRATIC).clients

    sizes = {(c.group, len(c.support), len(c.validation), len(c.test)) for c in clients}

    assert sizes == {("participating", 6, 6, 6), ("new", 6, 0, 6)}


def test_a_validation_fraction_of_zero_leaves_quadratics_unvalidated():
    """The one fraction that can be honored is."""
    clients = load(QUADRATIC.model_copy(update={"validation_fraction": 0.0})).clients

    assert all(len(c.validation) == 0 for c in clients)


def test_each_sinusoid_client_is_one_sine_wave():
    """A sin x cos φ - A cos x sin φ fits all examples of a client, with A in [0.1, 5] and φ in [0, π]."""
    amplitudes, phases = [], []
    for client in load(SINUSOID).clients:
        x = torch.cat([client.support.inputs, client.validation.inputs, client.test.inputs])
        y = torch.cat([client.support.targets, client.validation.targets, client.test.targets])
        basis = torch.cat([x.sin(), -x.cos()], 1)

        solution = torch.linalg.lstsq(basis, y).solution

        torch.testing.assert_close(basis @ solution, y, rtol=0, atol=1e-10)
        assert float(x.abs().max()) <= 5
        amplitudes.append(float(solution.norm()))
        phases.append(math.atan2(float(solution[1]), float(solution[0])))
    assert 0.1 <= min(amplitudes) < 0.5
    assert 4.5 < max(amplitudes) <= 5
    assert 0 <= min(phases) < 0.3
    assert math.pi - 0.3 < max(phases) <= math.pi


def test_sensors_share_patterns_behind_effects_of_each_client():
    """Over many clients, effects average out: an activity's mean is its pattern times the mean gain e^(1/8)."""
    config = DataConfig(source="sensors", num_clients=400, num_new_clients=0)
    federation = load_federation(config, seed=3, dtype=torch.float64, settings=Settings())
    patterns = numpy_generator(3, "data", "sensors", "patterns").standard_normal((6, 12))
    inputs = torch.cat([client.support.inputs for client in federation.clients]).numpy()
    activities = torch.cat([client.support.targets for client in federation.clients]).numpy()
    means = np.stack([inputs[activities == activity].mean(0) for activity in range(6)])

    assert np.corrcoef(means.ravel(), patterns.ravel())[0, 1] > 0.97
    slope = (means * patterns).sum() / (patterns**2).sum()
    assert abs(slope - np.exp(0.5**2 / 2)) < 0.1
    own = np.stack([client.support.inputs.numpy().mean(0) for client in federation.clients])
    assert own.std(0).min() > 0.8  # clients differ
