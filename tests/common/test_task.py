"""Losses: the model with other parameters, and nothing left behind in it."""

import math
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from torch import nn

from nufed.common.config import MethodConfig
from nufed.common.examples import Batch, TaskInfo
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.meta.proximal import proximal_loss
from nufed.common.metrics import evaluate_metrics
from nufed.common.params import leaves, model_params, trained_parameters
from nufed.common.rng import seeded_torch, torch_generator
from nufed.common.steps.differentiate import value_and_gradient
from nufed.common.task import answers, make_loss, with_params
from nufed.common.traits import Traits
from tests.common.meta.problems import cnn, mlp, random_examples, relative_difference


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


def test_a_thread_that_asks_for_the_models_parameters_waits_while_others_are_in_their_places():
    """Clients of one process share a model; what a model's trained parameters are does not depend on the others."""
    inside, asked = Event(), Event()

    class Slow(nn.Linear):
        def forward(self, inputs):
            inside.set()
            asked.wait(0.3)  # long enough for the other thread to look, if it may
            return super().forward(inputs)

    model = Slow(3, 2)
    loss = make_loss(model, TaskInfo("classification", (3,), 2))
    others = {name: torch.zeros_like(tensor) for name, tensor in model_params(model).items()}
    batch = Batch(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))

    with ThreadPoolExecutor(1) as pool:
        computed = pool.submit(loss, others, batch)
        assert inside.wait(10)
        seen = trained_parameters(model)
        asked.set()

    assert computed.result().item() == pytest.approx(math.log(2))
    assert {name: id(tensor) for name, tensor in seen.items()} == {
        name: id(tensor) for name, tensor in model.named_parameters()
    }


class Shifted(nn.Module):
    """Has a buffer of floating-point numbers, as pretrained layers that stay as they are have."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.linspace(-1, 1, 27).reshape(3, 9))
        self.head = nn.Linear(3, 4)

    def forward(self, inputs):
        return self.head(torch.tanh(nn.functional.linear(inputs.flatten(1), self.weight)))


def test_buffers_are_read_in_the_precision_of_the_parameters():
    """So that hessian-free-dtype=float64 computes models of float32 whose frozen layers are buffers."""
    model = Shifted()
    batch = random_examples(6, (1, 3, 3), dtype=torch.float32).as_batch()
    loss = make_loss(model, TaskInfo("classification", (1, 3, 3), 4))
    method = MethodConfig(hessian_free_dtype="float64", hessian_free_displacement="relative")

    estimate = find_estimator("hessian-free").build(loss, method)(
        model_params(model), MetaBatches((batch, batch), batch, (batch, batch))
    )

    expected = find_estimator("exact").build(loss, method)(
        model_params(model), MetaBatches((batch, batch), batch, (batch, batch))
    )
    assert relative_difference(estimate.gradient, expected.gradient) < 1e-5
    assert model.weight.dtype == torch.float32


def in_parts(model, most_rows):
    return make_loss(model, TaskInfo("classification", (1, 3, 3), 4), Traits("nothing", most_rows=most_rows))


@pytest.mark.parametrize("most_rows", [1, 4, 6, 7, 99])
def test_a_loss_in_parts_is_the_mean_of_all_examples_with_its_gradient(most_rows):
    model, batch = mlp(), random_examples(13, (1, 3, 3)).as_batch()
    whole, parts = in_parts(model, None), in_parts(model, most_rows)
    point = moved(model)

    (value, gradient), (expected, expected_gradient) = (
        value_and_gradient(loss, point, batch) for loss in (parts, whole)
    )

    assert value.item() == pytest.approx(expected.item(), rel=1e-14)
    assert relative_difference(gradient, expected_gradient) < 1e-14


def test_a_loss_in_parts_is_differentiated_for_some_parameters_and_held_to_an_anchor():
    """As fine-tuning of the head alone, and Ditto's, do."""
    model, batch = mlp(), random_examples(13, (1, 3, 3)).as_batch()
    point = moved(model)
    head = {name: point[name] for name in ("6.weight", "6.bias")}

    def gradient(loss):
        held = proximal_loss(lambda own, some: loss({**point, **own}, some), head, 0.3)
        return value_and_gradient(held, {name: tensor + 0.1 for name, tensor in head.items()}, batch)[1]

    found, expected = (gradient(in_parts(model, rows)) for rows in (5, None))

    assert found.keys() == head.keys()
    assert relative_difference(found, expected) < 1e-14


def test_judging_in_parts_gives_the_same_loss_and_accuracy():
    with seeded_torch(0):
        model = cnn().float().eval()
    task = TaskInfo("classification", (1, 8, 8), 4)
    batch = random_examples(300, (1, 8, 8), dtype=torch.float32).as_batch()
    seen = []
    model[0].register_forward_hook(lambda _module, inputs, _outputs: seen.append(len(inputs[0])))

    (outputs, whole), (outputs_in_parts, parts) = (
        answers(make_loss(model, task, Traits("nothing", most_rows=rows)), model_params(model), batch)
        for rows in (None, 64)
    )

    assert parts == whole
    judged = [evaluate_metrics(["accuracy"], task, each, batch.targets) for each in (outputs, outputs_in_parts)]
    assert judged[0] == judged[1]
    assert seen == [300, 64, 64, 64, 64, 44]
