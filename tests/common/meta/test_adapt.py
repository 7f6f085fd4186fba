"""Fine-tuning: plain gradient steps, nothing else."""

import pytest
import torch

from nufed.common.meta.adapt import adapt
from nufed.common.params import add_scaled
from nufed.common.steps.differentiate import gradient
from tests import oracles
from tests.common.meta.problems import model_problem, random_examples, relative_difference


@pytest.mark.parametrize(("model", "tolerance"), [("mlp", 1e-14), ("cnn", 0)])
def test_adaptation_equals_steps_by_hand(model, tolerance):
    """To the bit where both are computed by autograd."""
    loss, params, shape = model_problem(model)
    batches = [random_examples(5, shape, seed).as_batch() for seed in range(4)]

    points = list(adapt(loss, params, batches, 0.3))

    by_hand = params
    for point, batch in zip(points[1:], batches, strict=True):
        by_hand = add_scaled(by_hand, gradient(loss, by_hand, batch), -0.3)
        assert relative_difference(point, by_hand) <= tolerance
    assert len(points) == 5


def test_adaptation_on_a_quadratic_follows_its_closed_form():
    matrices, centers = oracles.random_quadratics(1, 4, (0.1, 1.0), seed=2)
    batch = oracles.quadratic_batch(matrices[0], centers[0])
    start = torch.ones(4, dtype=torch.float64)

    *_, adapted = adapt(oracles.quadratic_loss, oracles.as_params(start), [batch] * 7, 0.5)

    contraction = torch.linalg.matrix_power(torch.eye(4).double() - 0.5 * matrices[0], 7)
    assert torch.allclose(oracles.flatten(adapted) - centers[0], contraction @ (start - centers[0]), atol=1e-13)


def test_the_starting_point_comes_first_and_is_not_changed():
    loss, params, shape = model_problem("mlp")
    before = {name: tensor.clone() for name, tensor in params.items()}

    first, *_ = adapt(loss, params, [random_examples(5, shape).as_batch()], 0.3)

    assert all(torch.equal(first[name], before[name]) and torch.equal(params[name], before[name]) for name in before)
