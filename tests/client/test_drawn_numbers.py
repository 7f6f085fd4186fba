"""Whatever a model draws, from whichever generator: one seed gives one result, in every engine and in every call."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from flwr.app import Message, RecordDict

from nufed.client.app import app as client_app
from nufed.client.model_pair import ModelPair
from nufed.client.personal_model import predict
from nufed.client.personalize import adaptation_curves
from nufed.client.workplace import forget_workplaces, workplace
from nufed.common.config import MethodConfig, ModelConfig, RunConfig
from nufed.common.errors import ModelError
from nufed.common.examples import Batch, ClientData, Examples, TaskInfo
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.params import model_params
from nufed.common.rng import torch_generator
from nufed.common.settings import Settings
from nufed.common.wire import TrainRequest
from nufed.deploy.simulation.cohort import CohortGrid
from nufed.deploy.simulation.in_process import InProcessGrid
from tests.common.meta.problems import relative_difference

MODULE = """
import random

import numpy as np
import torch
from torch import nn
from torch.nn.functional import dropout


class Drawing(nn.Module):
    def __init__(self, body, after=None):
        super().__init__()
        self.body, self.after, self.head = body, after, nn.Linear(16, 10)

    def forward(self, inputs):
        found = self.body(inputs.reshape(-1, 8, 8))
        found = found[0] if isinstance(found, tuple) else found
        return self.head(found.mean(1) if self.after is None else self.after(found.mean(1), self.training))


def recurrent(config, task):
    return Drawing(nn.LSTM(8, 16, 2, batch_first=True, dropout=0.4))


def encoder(config, task):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, activation="gelu", batch_first=True)
    return Drawing(nn.Sequential(layer, nn.Linear(8, 16)))


def after(function):
    return Drawing(nn.Sequential(nn.Linear(8, 16), nn.Tanh()), function)


def functional(config, task):
    return after(lambda units, training: dropout(units, 0.4, training))


def careless(config, task):
    return after(lambda units, training: dropout(units, 0.4))


def noisy(config, task):
    return after(lambda units, training: units + torch.randn_like(units) if training else units)


def by_numpy(config, task):
    def noise(units, training):
        return units * torch.from_numpy(np.random.random(units.shape)).to(units) if training else units

    return after(noise)


def skipping(config, task):
    # Stochastic depth: which layers take part is drawn.
    return after(lambda units, training: units * (random.random() < 0.7) + units.tanh() if training else units)


def own_buffer(config, task):
    model = functional(config, task)
    model.register_buffer("offset", torch.from_numpy(np.random.random(10)))
    model.register_forward_hook(lambda module, args, outputs: outputs + module.offset)
    return model


def kept_elsewhere(config, task):
    model = functional(config, task)
    model.offset = torch.from_numpy(np.random.default_rng().random(10))
    model.register_forward_hook(lambda module, args, outputs: outputs + module.offset)
    return model


def entropy(config, task):
    model = functional(config, task)
    model.register_buffer("offset", torch.from_numpy(np.random.default_rng().random(10)))
    return model
"""
NAMES = ["recurrent", "encoder", "functional", "careless", "noisy", "by_numpy", "skipping"]
TASK = TaskInfo("classification", (1, 8, 8), 10, tuple("0123456789"))


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "drawing_models.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    forget_workplaces()


def examples(seed, count=6, dtype=torch.float64):
    generator = torch_generator(seed, "test")
    inputs = torch.rand(count, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return Examples(inputs, torch.randint(0, 10, (count,), generator=generator))


def training_loss(name):
    pair = ModelPair(ModelConfig(name=f"drawing_models:{name}", dtype="float64"), TASK, 0, "cpu")
    data = ClientData("a", "participating", examples(1), examples(2), examples(3))
    return pair.losses(data, MethodConfig())[0]


@pytest.mark.parametrize("name", NAMES)
def test_both_ends_of_a_difference_see_the_same_draws(name):
    """Hessian-free agrees with double backward, which evaluates once; with draws of their own it is off by 1e5."""
    loss = training_loss(name)
    inner = tuple(Batch(examples(i).inputs, examples(i).targets, 7 + i) for i in range(2))
    batches = MetaBatches(inner, Batch(examples(9).inputs, examples(9).targets, 77), inner)
    point = model_params(loss.model)

    by_differences, expected = (
        find_estimator(name).build(loss, MethodConfig(inner_lr=0.1))(point, batches)
        for name in ("hessian-free", "unrolled")
    )

    assert relative_difference(by_differences.gradient, expected.gradient) < 1e-7
    assert len({float(loss(point, replace(inner[0], mask_seed=seed))) for seed in range(20)}) > 1


def config_of(name, **changes):
    values = {
        "model.name": f"drawing_models:{name}",
        "data.num-clients": 3,
        "data.num-new-clients": 0,
        "method.num-inner-steps": 1,
        "method.num-local-steps": 2,
        "method.batch-size": 8,
        "evaluation.num-adapt-steps": 2,
        "evaluation.primary-step": 1,
    }
    return RunConfig().updated({**values, **changes})


def trained(kind, config):
    """Return each client's model after one round in a grid."""
    place = workplace(config.flat(), {"partition-id": 0}, Settings())
    grid = kind(client_app, num_nodes=3, run_config=config.flat())
    records = TrainRequest(model_params(place.model), 1).to_records()
    sent = [Message(RecordDict(records), dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
    received = grid.send_and_receive(sent)
    assert all(reply.has_content() for reply in received)
    return {reply.metadata.src_node_id: reply.content["arrays"] for reply in received}


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_of_one_seed_and_the_batched_engine_give_the_same_bytes(name):
    config = config_of(name)

    first = trained(InProcessGrid, config)
    torch.rand(5)  # whatever else is drawn from the global generator in between
    again, together = trained(InProcessGrid, config), trained(CohortGrid, config)

    assert first == again == together


def test_threads_of_one_process_do_not_draw_from_each_other():
    losses = [training_loss(name) for name in ("recurrent", "by_numpy", "skipping")]
    batch = Batch(examples(1).inputs, examples(1).targets, 5)
    points = [model_params(loss.model) for loss in losses]
    alone = [loss(point, batch) for loss, point in zip(losses, points, strict=True)]
    start = threading.Barrier(3)

    def work(number):
        start.wait()
        return [torch.equal(losses[number](points[number], batch), alone[number]) for _ in range(40)]

    with ThreadPoolExecutor(3) as pool:
        assert all(all(equal) for equal in pool.map(work, range(3)))


@pytest.mark.parametrize("name", ["functional", "careless"])
def test_evaluations_are_repeated_to_the_bit_also_of_a_model_that_draws_in_them(name):
    """`careless` forgets to turn dropout off; it is evaluated with its noise, but always with the same."""
    place = workplace(config_of(name).flat(), {"partition-id": 0}, Settings())
    params = model_params(place.model)

    curves = [adaptation_curves(place, params) for _ in range(2)]

    predictions = [predict(place.model, place.task, params, place.data.test.inputs) for _ in range(2)]
    assert curves[0] == curves[1]
    assert torch.equal(*predictions)
    assert (place.adaptation_loss.traits.draws == "nothing") == (name == "functional")


def test_buffers_that_numpy_draws_are_those_of_the_seed():
    """Buffers are not sent: server and clients have to make the same."""
    config = ModelConfig(name="drawing_models:own_buffer")

    one, same, other = (ModelPair(config, TASK, seed, "cpu").training.offset for seed in (3, 3, 4))

    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_model_that_is_another_one_each_time_is_refused():
    with pytest.raises(ModelError, match=r"two models of one seed to be equal, but their buffer 'offset' differs"):
        ModelPair(ModelConfig(name="drawing_models:entropy"), TASK, 0, "cpu")


def test_a_model_that_keeps_something_drawn_outside_parameters_and_buffers_is_refused():
    with pytest.raises(ModelError, match=r"two models of one seed to give equal outputs, but those of Drawing differ"):
        ModelPair(ModelConfig(name="drawing_models:kept_elsewhere"), TASK, 0, "cpu")
