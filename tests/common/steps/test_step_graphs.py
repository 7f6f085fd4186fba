"""The traced inner step and its parts against the eager step, in float64 and without a compiler."""

import pytest
import torch
from torch import nn

from nufed.common.errors import ModelError
from nufed.common.examples import Batch, TaskInfo
from nufed.common.params import model_params
from nufed.common.steps.step_graphs import (
    VIEWS,
    descend_graph,
    linearize_graphs,
    pull_back_graph,
    trace_gradient,
    trace_step,
)
from nufed.common.steps.steps import autograd_steps
from nufed.common.task import make_loss
from tests.common.meta.problems import SHAPES, cnn, mlp, random_examples

ALPHA = 0.3


def relu_and_pool():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4)).double()


MODELS = {"mlp": (mlp, SHAPES["mlp"]), "cnn": (cnn, SHAPES["cnn"]), "relu": (relu_and_pool, SHAPES["cnn"])}


def arranged(name):
    """Return eager steps, the traced step, parameters, a batch, the flat inputs and a direction."""
    build, shape = MODELS[name]
    model = build()
    loss, params = make_loss(model, TaskInfo("classification", shape, 4)), model_params(model)
    batch, traced_on = random_examples(6, shape, 1).as_batch(), random_examples(6, shape, 2).as_batch()
    step = trace_step(loss, ALPHA, {key: torch.zeros_like(value) for key, value in params.items()}, traced_on)
    direction = {key: value.sin() for key, value in params.items()}
    return autograd_steps(loss, ALPHA), step, params, batch, [*params.values(), batch.inputs, batch.targets], direction


def close(found, expected):
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-13) for a, b in zip(found, expected.values(), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_equal_the_eager_step_at_points_and_batches_they_were_not_traced_on(name):
    eager, step, params, batch, flat, direction = arranged(name)
    first, second = linearize_graphs(step)

    outputs = first(*flat)
    pulled = second(*flat, *outputs[len(params) :], *direction.values())

    assert close(outputs[: len(params)], eager.descend(params, batch))
    assert close(descend_graph(step)(*flat), eager.descend(params, batch))
    assert close(pulled, eager.pull_back(params, batch, direction))
    assert close(pull_back_graph(step)(*flat, *direction.values()), eager.pull_back(params, batch, direction))


@pytest.mark.parametrize("name", MODELS)
def test_the_traced_gradient_equals_the_eager_one(name):
    build, shape = MODELS[name]
    model = build()
    loss, params = make_loss(model, TaskInfo("classification", shape, 4)), model_params(model)
    batch = random_examples(6, shape, 1).as_batch()

    value, *gradients = trace_gradient(loss, params, batch)(*params.values(), batch.inputs, batch.targets)

    expected_value, expected = autograd_steps(loss, ALPHA).value_and_gradient(params, batch)
    assert torch.allclose(value, expected_value, rtol=1e-12)
    assert close(gradients, expected)


def test_the_second_part_computes_nothing_but_views_that_the_first_could_have():
    _, step, _, _, _, direction = arranged("mlp")
    _, second = linearize_graphs(step)

    inputs = second.graph.find_nodes(op="placeholder")
    reached = set(inputs[-len(direction) :])
    alone = []
    for node in second.graph.nodes:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
        elif node.op == "call_function":
            alone.append(node)

    assert all(node.target in VIEWS for node in alone)


def test_no_residual_is_a_view_or_an_input():
    _, step, params, _, flat, _ = arranged("mlp")
    first, _ = linearize_graphs(step)

    residuals = first(*flat)[len(params) :]

    owned = {tensor.untyped_storage().data_ptr() for tensor in flat}
    assert len({tensor.untyped_storage().data_ptr() for tensor in residuals}) == len(residuals)
    assert not owned & {tensor.untyped_storage().data_ptr() for tensor in residuals}


def test_a_model_that_draws_random_numbers_is_refused():
    model = mlp(dropout=0.5).train()
    loss = make_loss(model, TaskInfo("classification", (1, 3, 3), 4))

    with pytest.raises(ModelError, match="draws no random numbers"):
        trace_step(loss, ALPHA, model_params(model), random_examples(6, (1, 3, 3)).as_batch())


def test_a_loss_of_no_curvature_pulls_directions_back_unchanged():
    def loss(params, batch):
        return (params["w"] * batch.inputs).sum()

    w = torch.ones(3, dtype=torch.float64)
    batch = Batch(torch.arange(3.0, dtype=torch.float64), torch.zeros(1))
    step = trace_step(loss, ALPHA, {"w": w}, batch)

    (pulled,) = pull_back_graph(step)(w, batch.inputs, batch.targets, 2 * w)

    assert torch.equal(pulled, 2 * w)
