"""Only models whose derivatives the dense kernel has are taken for dense."""

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations

from nufed.common.examples import TaskInfo
from nufed.common.steps.dense_layers import dense_layers
from tests.common.meta.problems import CLASSES, SHAPES, cnn, mlp

TASK = TaskInfo("classification", SHAPES["mlp"], CLASSES)
HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


class Doubled(nn.Linear):
    def forward(self, inputs):
        return 2 * super().forward(inputs)


def sharing_a_weight():
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.ELU(), nn.Linear(9, 9), nn.ELU(), nn.Linear(9, 4))
    model[3].weight = model[1].weight
    return model


def sharing_a_layer():
    """Return a network that the children of the model, each named once, would take for a smaller one."""
    shared, activation = nn.Linear(9, 9), nn.ELU()
    return nn.Sequential(nn.Flatten(), shared, activation, nn.Linear(9, 9), activation, shared)


def with_a_parameter_of_no_layer():
    model = mlp()
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    return model


def with_a_forward_of_its_own():
    model = mlp()
    model[2].forward = torch.sin
    return model


def reparametrized():
    model = mlp()
    parametrizations.weight_norm(model[1])
    return model


@pytest.mark.parametrize(
    "model",
    [
        cnn(),
        nn.Linear(9, 4),
        nn.Sequential(nn.Linear(3, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.ELU()),
        nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.Linear(4, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.ELU(0.5), nn.Linear(5, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.GELU("tanh"), nn.Linear(5, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.LayerNorm(5), nn.Linear(5, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(9, 5), nn.ELU(), nn.Dropout(0.1), nn.Linear(5, 4)).train(),
        nn.Sequential(nn.Flatten(), Doubled(9, 4)),
        nn.Sequential(),
        sharing_a_weight(),
        sharing_a_layer(),
        with_a_parameter_of_no_layer(),
        with_a_forward_of_its_own(),
        reparametrized(),
    ],
    ids=str,
)
def test_what_the_dense_kernel_would_compute_wrongly_is_not_for_it(model):
    """Only plain networks of linear layers and known activations are taken."""
    assert dense_layers(model, TASK) is None


@pytest.mark.parametrize("place", ["model", "layer", "activation"])
@pytest.mark.parametrize("register", HOOKS)
def test_a_module_with_a_hook_is_left_to_autograd_until_the_hook_is_removed(register, place):
    """A hook may change what passes through, or wants to be called."""
    model = mlp()
    module = {"model": model, "layer": model[1], "activation": model[2]}[place]

    handle = getattr(module, register)(lambda *_: None)
    hooked = dense_layers(model, TASK)
    handle.remove()

    assert hooked is None
    assert dense_layers(model, TASK) is not None


def test_a_hook_on_all_modules_leaves_every_model_to_autograd():
    """As profilers and debuggers set it."""
    handle = register_module_forward_hook(lambda *_: None)
    try:
        hooked = dense_layers(mlp(), TASK)
    finally:
        handle.remove()

    assert hooked is None
    assert dense_layers(mlp(), TASK) is not None


def test_dropout_in_evaluation_mode_is_passed_over():
    """A network that drops nothing is dense."""
    layers = dense_layers(mlp(nn.ELU, dropout=0.5).eval(), TASK)

    assert [layer.weight for layer in layers] == ["1.weight", "4.weight", "6.weight"]


def test_one_activation_may_serve_several_layers():
    """It has no parameters, so that nothing is shared but code."""
    activation = nn.Tanh()
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 5), activation, nn.Linear(5, 5), activation, nn.Linear(5, 4))

    layers = dense_layers(model, TASK)

    assert [layer.weight for layer in layers] == ["1.weight", "3.weight", "5.weight"]
    assert [layer.activation is None for layer in layers] == [False, False, True]
