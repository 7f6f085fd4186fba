"""Claims about models that cannot be meta-trained, and those that can."""

import pytest
import torch
from torch import nn

from nufed.common.errors import ModelError
from nufed.common.examples import TaskInfo
from nufed.common.models import check_model

IMAGES = TaskInfo("classification", (3, 8, 8), 4, tuple("abcd"))


def network(*middle):
    """A small network for IMAGES around the given layers of 6 channels."""
    return nn.Sequential(nn.Conv2d(3, 6, 3), *middle, nn.Flatten(), nn.Linear(6 * 36, 4))


class InTraining(nn.Module):
    """Uses its parameter in training mode alone."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.spare if self.training else x


class Counting(nn.Module):
    """Counts its evaluations in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x


class Scaling(nn.Module):
    """Divides by a constant buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((6, 1, 1), 2.0))

    def forward(self, x):
        return x / self.scale


class Unused(nn.Module):
    """Has a parameter that nothing depends on."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x), x


def frozen():
    model = network()
    model[0].weight.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "model",
    [
        network(nn.GroupNorm(2, 6), nn.ELU()),
        network(nn.ReLU()),
        network(nn.BatchNorm2d(6, track_running_stats=False)),
        network(nn.InstanceNorm2d(6)),
        frozen(),
        network(Scaling()),
        network(nn.Dropout(0.5)),
        network(nn.MaxPool2d(3, stride=1, padding=1)),
    ],
    ids=[
        "group norm",
        "relu",
        "batch norm without statistics",
        "instance norm",
        "a frozen layer",
        "constant buffer",
        "dropout",
        "max pool",
    ],
)
def test_a_model_without_state_is_accepted_and_not_changed(model):
    """Parameters, mode and torch's generator are as before."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()

    check_model(model, IMAGES)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            network(nn.Sequential(nn.ELU(), nn.BatchNorm2d(6))),
            r"'1.1' is a BatchNorm2d that keeps them; use .*GroupNorm",
        ),
        (network(nn.InstanceNorm2d(6, track_running_stats=True)), r"'1' is a InstanceNorm2d .*GroupNorm"),
        (network(Counting()), r"'1.count' of '1' \(Counting\) changes in the forward pass; .*GroupNorm"),
        (nn.Sequential(nn.Flatten(), nn.Softmax(1)), r"with parameters, but Sequential has none"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), r"shape \[B, 4\] from Sequential, but got \[B, 5\]"),
        (nn.Conv2d(3, 4, 3), r"shape \[B, 4\] from Conv2d, but got \[B, 4, 6, 6\]"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(576, 4)), r"shape \[B, 4\] from Sequential, but got \[4\]"),
        (Pair(), r"shape \[B, 4\] from Pair, but got tuple"),
        (nn.Linear(5, 4), r"Linear to take inputs of shape \[B, 3, 8, 8\], but it raised: mat1 and mat2"),
        (network(Unused()), r"do not depend on '1.spare' \(and 0 more\)"),
        (network(InTraining()), r"every parameter to be used, also in evaluation mode, .* on '1.spare'"),
        (nn.Sequential(network(), Detached()), "outputs that depend on the parameters, but they do not"),
    ],
)
def test_a_model_that_cannot_be_meta_trained_is_refused_by_place(model, message):
    """The message names the module or parameter and what to do."""
    with pytest.raises(ModelError, match=message):
        check_model(model, IMAGES)
