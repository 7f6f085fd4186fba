"""Losses: the model with other parameters, and nothing left behind in it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from nufed.common.examples import Batch, TaskInfo
from nufed.common.params import leaves, model_params
from nufed.common.rng import seeded_torch, torch_generator
from nufed.common.steps.differentiate import value_and_gradient
from nufed.common.task import make_loss, with_params
from tests.common.meta.problems import cnn, mlp, random_examples


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(3, 4, num_layers=2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.head(self.cell(inputs)[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)))


def moved(model):
    generator = torch_generator(3, "test", "moved")
    return {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in model_params(model).items()
    }


@pytest.mark.parametrize(("build", "shape"), [(mlp, (5, 1, 3, 3)), (cnn, (5, 1, 8, 8)), (Tied, (5, 3))])
def test_outputs_and_gradients_equal_functional_call_bit_for_bit(build, shape):
    with seeded_torch(0):
        model = build().double()
        inputs = torch.randn(shape).double()
    params = leaves(moved(model))

    outputs = with_params(model)(params, inputs)

    expected = torch.func.functional_call(model, params, (inputs,))
    gradients = (torch.autograd.grad(out.square().sum(), list(params.values())) for out in (outputs, expected))
    assert torch.equal(outputs, expected)
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))


def test_a_recurrent_net_is_computed_with_the_parameters_given():
    with seeded_torch(0):
        model, inputs = Recurrent(), torch.randn(5, 6, 3)
    params = moved(model)

    outputs = with_params(model)(params, inputs)

    assert not torch.allclose(outputs, model(inputs))
    assert torch.equal(with_params(model)(params, inputs), outputs)
    model.load_state_dict(params)
    assert torch.equal(outputs, model(inputs))


@pytest.mark.parametrize("build", [mlp, Recurrent])
def test_the_model_has_its_own_parameters_back_also_after_an_error(build):
    model = build()
    own = dict(model.named_parameters())

    with pytest.raises((RuntimeError, ValueError)):
        with_params(model)(moved(model), torch.zeros(2, 99, 98, 97, 96))

    assert all(own[name] is tensor for name, tensor in model.named_parameters())


def test_a_missing_parameter_is_not_replaced_by_the_models_own():
    model = mlp()
    params = moved(model)
    del params["1.weight"]

    with pytest.raises(KeyError, match=r"1\.weight"):
        with_params(model)(params, torch.zeros(2, 1, 3, 3).double())


def test_losses_of_one_model_and_task_are_equal_and_others_are_not():
    model, task = mlp(), TaskInfo("classification", (1, 3, 3), 4)

    same, again = make_loss(model, task), make_loss(model, task)

    assert (same == again, hash(same) == hash(again)) == (True, True)
    assert same != make_loss(mlp(), task)
    assert same != make_loss(model, TaskInfo("regression", (1, 3, 3), 4))


def test_a_loss_is_a_mean_over_examples():
    model = mlp()
    loss, params = make_loss(model, TaskInfo("classification", (1, 3, 3), 4)), model_params(model)
    inputs = torch.randn(6, 1, 3, 3, generator=torch_generator(0, "test", "x"), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3, 0, 1])

    whole = loss(params, Batch(inputs, targets))

    parts = [loss(params, Batch(inputs[i : i + 1], targets[i : i + 1])) for i in range(6)]
    assert torch.allclose(whole, torch.stack(parts).mean(), rtol=1e-12)


def test_threads_that_share_a_model_do_not_see_each_others_parameters_or_masks():
    model = mlp(dropout=0.5).train()
    loss = make_loss(model, TaskInfo("classification", (1, 3, 3), 4))
    batch = random_examples(40, (1, 3, 3)).as_batch()
    points = [{name: tensor * scale for name, tensor in model_params(model).items()} for scale in (0.5, 1.0, 2.0, 4.0)]
    masked = [Batch(batch.inputs, batch.targets, seed) for seed in range(4)]
    alone = [value_and_gradient(loss, point, some)[0] for point, some in zip(points, masked, strict=True)]

    with ThreadPoolExecutor(4) as pool:
        turns = list(pool.map(lambda i: value_and_gradient(loss, points[i % 4], masked[i % 4])[0], range(400)))

    assert all(torch.equal(value, alone[i % 4]) for i, value in enumerate(turns))
