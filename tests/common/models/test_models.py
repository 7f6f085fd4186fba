"""Claims that hold for every model in the registry."""

import pytest
import torch
from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.data import load_federation
from nufed.common.errors import ConfigError, ModelError
from nufed.common.examples import Batch, TaskInfo
from nufed.common.models import DTYPES, MODELS, build_model
from nufed.common.models.layers import ACTIVATIONS
from nufed.common.params import add_scaled, leaves, model_params, norm
from nufed.common.rng import torch_generator
from nufed.common.settings import Settings
from nufed.common.task import make_loss
from tests.common.data.stand_ins import config_for

TASKS = {
    "digits": TaskInfo("classification", (1, 8, 8), 10, tuple("0123456789")),
    "mnist": TaskInfo("classification", (1, 28, 28), 10, tuple("0123456789")),
    "cifar": TaskInfo("classification", (3, 32, 32), 10, tuple("0123456789")),
}
VALUES = TaskInfo("regression", (6,), 2)


def random_batch(task, count=7):
    generator = torch_generator(0, "test", "batch")
    inputs = torch.rand(count, *task.input_shape, generator=generator)
    if task.kind == "regression":
        return Batch(inputs, torch.randn(count, task.num_outputs, generator=generator))
    return Batch(inputs, torch.randint(0, task.num_outputs, (count,), generator=generator))


@pytest.fixture(params=sorted(name for name, spec in MODELS.items() if not spec.argument))
def name(request):
    return request.param


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_outputs_are_one_number_for_each_class(name, task):
    """From 8 x 8 grey to 32 x 32 color images, any number of them."""
    model = build_model(ModelConfig(name=name), task, seed=0)

    outputs = model(random_batch(task).inputs)

    assert outputs.shape == (7, 10)


def test_a_model_keeps_nothing_outside_its_parameters(name):
    """No buffers: the parameters are all that is averaged."""
    model = build_model(ModelConfig(name=name), TASKS["digits"], seed=0)

    assert not list(model.buffers())


def test_the_seed_decides_the_parameters_and_leaves_torch_as_it_was(name):
    """The same seed gives equal parameters, another one others; the global generator is not moved."""
    state = torch.get_rng_state()

    one, same, other = (
        model_params(build_model(ModelConfig(name=name), TASKS["digits"], seed=seed)) for seed in (3, 3, 4)
    )

    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_have_the_configured_precision(name, dtype):
    """Both precisions that the configuration accepts."""
    model = build_model(ModelConfig(name=name, dtype=dtype), TASKS["digits"], seed=0)

    assert {parameter.dtype for parameter in model.parameters()} == {DTYPES[dtype]}


def test_precisions_are_those_the_configuration_accepts():
    """The table of types has every name of model.dtype."""
    assert set(DTYPES) == set(ModelConfig.model_fields["dtype"].annotation.__args__)


def test_activations_are_those_the_configuration_accepts():
    """The table of activations has every name of model.activation."""
    assert set(ACTIVATIONS) == set(ModelConfig.model_fields["activation"].annotation.__args__)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_builds_a_network_that_is_not_linear(activation):
    """f(2x) differs from 2 f(x) - f(0)."""
    model = build_model(ModelConfig(name="mlp", activation=activation), TASKS["digits"], seed=0)
    x = random_batch(TASKS["digits"]).inputs

    bend = model(2 * x) - 2 * model(x) + model(0 * x)

    assert bend.abs().max() > 1e-4


def test_one_gradient_step_lowers_the_support_loss(name):
    """Of a real client, with a step of length 0.01 against the gradient."""
    client = load_federation(config_for("digits"), seed=0, dtype=torch.float32, settings=Settings()).clients[0]
    model = build_model(ModelConfig(name=name), TASKS["digits"], seed=0)
    loss, batch, params = make_loss(model, TASKS["digits"]), client.support.as_batch(), leaves(model_params(model))
    before = loss(params, batch)

    gradient = dict(zip(params, torch.autograd.grad(before, list(params.values())), strict=True))

    after = loss(add_scaled(params, gradient, -0.01 / norm(gradient)), batch)
    assert float(after.detach()) < float(before.detach()) - 0.005 * norm(gradient)


@pytest.mark.parametrize("name", ["mlp", "linear"])
def test_models_for_values_predict_as_many_as_asked(name):
    """Regression with two outputs."""
    model = build_model(ModelConfig(name=name), VALUES, seed=0)

    assert model(random_batch(VALUES).inputs).shape == (7, 2)


def test_linear_has_a_bias_for_classes_and_none_for_values():
    """Without bias the loss of the source quadratic is the known one."""
    for_classes, for_values = (
        build_model(ModelConfig(name="linear"), task, seed=0) for task in (TASKS["digits"], VALUES)
    )

    assert sum(p.numel() for p in for_classes.parameters()) == 64 * 10 + 10
    assert sum(p.numel() for p in for_values.parameters()) == 6 * 2


@pytest.mark.parametrize(("sizes", "widths"), [("80,60", [80, 60, 10]), ("5", [5, 10]), ("", [10])])
def test_hidden_sizes_are_the_widths_of_the_layers(sizes, widths):
    """80,60 is Per-FedAvg's network; nothing is logistic regression."""
    model = build_model(ModelConfig(hidden_sizes=sizes), TASKS["digits"], seed=0)

    assert [layer.out_features for layer in model if isinstance(layer, nn.Linear)] == widths


def test_a_hidden_layer_of_width_zero_is_refused():
    """It would cut the network in two."""
    with pytest.raises(ConfigError, match=r"model.hidden-sizes='80,0' has a layer of width 0"):
        build_model(ModelConfig(hidden_sizes="80,0"), TASKS["digits"], seed=0)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_dropout_is_there_when_asked_for(name):
    """Two evaluations in training mode differ with it and agree without it."""
    inputs = random_batch(TASKS["digits"]).inputs

    differences = []
    for dropout in (0.0, 0.5):
        model = build_model(ModelConfig(name=name, dropout=dropout), TASKS["digits"], seed=0)
        differences.append(float((model(inputs) - model(inputs)).detach().abs().max()))

    assert differences[0] == 0
    assert differences[1] > 0


def test_fedavg_cnn_has_the_parameters_of_the_published_networks():
    """PFLlib's FedAvgCNN for 28 x 28 images and FedEM's FemnistCNN, counted from their layers."""
    femnist = TaskInfo("classification", (1, 28, 28), 62, tuple(map(str, range(62))))
    for sizes, task, count in (("512", TASKS["mnist"], 582_026), ("2048", femnist, 2_278_334)):
        model = build_model(ModelConfig(name="fedavg-cnn", hidden_sizes=sizes, activation="relu"), task, seed=0)

        assert [type(layer).__name__ for layer in model][:6] == ["Conv2d", "ReLU", "MaxPool2d"] * 2
        assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("shape", [(6,), (1, 3, 8), (8, 8)])
@pytest.mark.parametrize("name", ["cnn", "fedavg-cnn"])
def test_networks_for_images_refuse_what_is_none(shape, name):
    """The message offers the mlp."""
    with pytest.raises(ModelError, match=rf"model.name={name} expects images .*use model.name=mlp"):
        build_model(ModelConfig(name=name), TaskInfo("classification", shape, 3, ("a", "b", "c")), seed=0)


def test_an_unknown_model_is_refused_with_the_nearest_name():
    """Known names are listed, and the way to one's own."""
    with pytest.raises(
        ConfigError, match=rf"'mpl' is unknown. Did you mean 'mlp'\? Known: {', '.join(sorted(MODELS))}. Or module:"
    ):
        build_model(ModelConfig(name="mpl"), TASKS["digits"], seed=0)


MODULE = """
from torch import nn


def make(config, task):
    layers = nn.Linear(64, int(config.hidden_sizes)), nn.Tanh(), nn.Linear(7, task.num_outputs)
    return nn.Sequential(nn.Flatten(), *layers)


def nothing(config, task):
    return None
"""


def test_a_model_of_the_users_own_is_built_seeded_and_cast(tmp_path, monkeypatch):
    """A function module:function gets the model section and the task."""
    (tmp_path / "network_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    config = ModelConfig(name="network_of_mine:make", hidden_sizes="7", dtype="float64")

    one, same = (model_params(build_model(config, TASKS["digits"], seed=1)) for _ in range(2))

    assert one["3.weight"].shape == (10, 7)
    assert all(torch.equal(one[key], same[key]) and one[key].dtype == torch.float64 for key in one)


def test_a_function_that_returns_no_module_is_refused(tmp_path, monkeypatch):
    """The message says what came."""
    (tmp_path / "network_of_mine_2.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ModelError, match=r"return a torch.nn.Module, but it returned NoneType"):
        build_model(ModelConfig(name="network_of_mine_2:nothing"), TASKS["digits"], seed=0)


BROKEN = """
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Head(nn.Module):
    def __init__(self, task, of=lambda self, inputs: inputs):
        super().__init__()
        self.head, self.of = nn.Linear(64, task.num_outputs), of

    def forward(self, inputs):
        return self.head(self.of(self, inputs.flatten(1)))


def complex_numbers(config, task):
    model = Head(task)
    model.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    return model


def lazy(config, task):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(task.num_outputs))


def without_values(config, task):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, task.num_outputs, device="meta"))


def missing_key(config, task):
    return Head(task, lambda self, inputs: {}[7])


def no_backward(config, task):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs * 2

        @staticmethod
        def backward(ctx, above):
            raise KeyError("nothing saved")

    return nn.Sequential(Head(task), *[type("Last", (nn.Module,), {"forward": lambda _, x: Broken.apply(x)})()])


def rotated(config, task):
    model = Head(task, lambda self, inputs: torch.view_as_real(torch.view_as_complex(
        inputs.reshape(-1, 32, 2)) * self.turn).flatten(1))
    model.register_buffer("turn", torch.polar(torch.ones(32), torch.arange(32.0)))
    return model
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("complex_numbers", r"real numbers, but 'phase' is complex; .*view_as_real"),
        ("lazy", r"'1.weight' of '1' \(LazyLinear\) gets its shape from the first inputs; give the sizes"),
        ("without_values", r"'1.weight' is on the device 'meta'; build the model on the CPU"),
        ("missing_key", r"but it raised KeyError: 7; choose another model.name"),
        ("no_backward", r"can be differentiated, but KeyError was raised: 'nothing saved'; correct the model"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_one_sentence(function, message, tmp_path, monkeypatch):
    """Not in a traceback, whatever it raises and wherever."""
    (tmp_path / "broken_network.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ModelError, match=message):
        build_model(ModelConfig(name=f"broken_network:{function}"), TASKS["digits"], seed=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_complex_buffers_stay_complex(dtype, tmp_path, monkeypatch):
    """Rotary embeddings have them; cast to real numbers they would rotate nothing."""
    (tmp_path / "broken_network.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)

    model = build_model(ModelConfig(name="broken_network:rotated", dtype=dtype), TASKS["digits"], seed=0)

    assert model.turn.dtype == {"float32": torch.complex64, "float64": torch.complex128}[dtype]
    assert model.turn.imag.abs().max() > 0.9
