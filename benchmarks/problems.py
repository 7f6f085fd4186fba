"""The networks and random batches that estimators are timed on."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from nufed.common.examples import Batch, TaskInfo
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.params import Params, model_params
from nufed.common.rng import seeded_torch, torch_generator
from nufed.common.task import LossFn, make_loss

BATCH_SIZE, CLASSES = 40, 10


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm and ReLU, added to a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(channels_in, channels, 3, stride)
        self.second = _conv_norm(channels, channels, 3, 1)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else _conv_norm(channels_in, channels, 1, stride)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return relu(second(relu(first(x))) + shortcut(x))."""
        return torch.relu(self.second(torch.relu(self.first(inputs))) + self.shortcut(inputs))


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ELU) -> nn.Module:
    """Return the fully connected network of Per-FedAvg's experiments, or one of other widths."""
    widths = widths or (784, 80, 60, CLASSES)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


def cnn(activation: Callable[[], nn.Module] = nn.ELU, pool: Callable[[int], nn.Module] = nn.MaxPool2d) -> nn.Module:
    """Return two 5x5 convolutions and two dense layers, 880 thousand parameters, for 3x32x32."""
    convolutions = [nn.Conv2d(3, 32, 5), activation(), pool(2), nn.Conv2d(32, 64, 5), activation(), pool(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1600, 512), activation(), nn.Linear(512, CLASSES))


def resnet18(width: int = 16) -> nn.Module:
    """Return ResNet-18 for 3x32x32 with GroupNorm in place of BatchNorm; 64 is the usual width."""
    layers: list[nn.Module] = [_conv_norm(3, width, 3, 1), nn.ReLU()]
    before = width
    for stride, channels in ((1, width), (2, 2 * width), (2, 4 * width), (2, 8 * width)):
        layers += [ResidualBlock(before, channels, stride), ResidualBlock(channels, channels, 1)]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


def _conv_norm(channels_in: int, channels: int, kernel: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(min(8, channels), channels))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (784,)),
    "mlp-relu": (lambda: mlp(activation=nn.ReLU), (784,)),
    "mlp-tanh": (lambda: mlp(activation=nn.Tanh), (784,)),
    "mlp-wide": (lambda: mlp(784, 2048, 2048, CLASSES), (784,)),
    "cnn": (cnn, (3, 32, 32)),
    "cnn-tanh-avg": (lambda: cnn(nn.Tanh, nn.AvgPool2d), (3, 32, 32)),
    "resnet18": (resnet18, (3, 32, 32)),
    "resnet18-full": (lambda: resnet18(64), (3, 32, 32)),
}


@dataclass(frozen=True)
class Problem:
    """A network, its loss and its starting point."""

    model: nn.Module
    loss: LossFn
    params: Params
    task: TaskInfo

    def batches(self, num_inner: int, *, coupled: bool = True, size: int = BATCH_SIZE, seed: int = 0) -> MetaBatches:
        """Return ν inner batches of noise, an outer one, and Hessian batches (the inner ones where coupled)."""
        inner = tuple(self._batch(size, seed, "inner", j) for j in range(num_inner))
        hessian = inner if coupled else tuple(self._batch(size, seed, "hessian", j) for j in range(num_inner))
        return MetaBatches(inner, self._batch(size, seed, "outer", 0), hessian)

    def _batch(self, size: int, seed: int, kind: str, number: int) -> Batch:
        generator, dtype = torch_generator(seed, "benchmark", kind, number), next(iter(self.params.values())).dtype
        inputs = torch.randn(size, *self.task.input_shape, generator=generator).to(dtype)
        return Batch(inputs, torch.randint(0, CLASSES, (size,), generator=generator))


def problem(name: str, dtype: torch.dtype = torch.float32) -> Problem:
    """Return a named network with random weights, the same at every call."""
    build, shape = NETWORKS[name]
    with seeded_torch(0):
        model = build().to(dtype)
    task = TaskInfo("classification", shape, CLASSES)
    return Problem(model, make_loss(model, task), model_params(model), task)
