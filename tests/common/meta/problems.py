"""Small problems that the tests of the algorithm share."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nufed.common.examples import Batch, Examples, TaskInfo
from nufed.common.meta.meta_gradient import MetaBatches
from nufed.common.params import Params, model_params
from nufed.common.rng import seeded_torch, torch_generator
from nufed.common.task import LossFn, make_loss

CLASSES = 4


def mlp(activation: type[nn.Module] = nn.Tanh, dropout: float = 0.0) -> nn.Module:
    """Return a 9-7-5-4 perceptron for inputs [B, 1, 3, 3]."""
    layers = [nn.Flatten(), nn.Linear(9, 7), activation(), nn.Dropout(dropout), nn.Linear(7, 5), activation()]
    with seeded_torch(1):
        return nn.Sequential(*layers, nn.Linear(5, CLASSES)).double()


def cnn() -> nn.Module:
    """Return a small convolutional net with GroupNorm for inputs [B, 1, 8, 8]."""
    with seeded_torch(2):
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, CLASSES)
        ).double()


SHAPES = {"mlp": (1, 3, 3), "cnn": (1, 8, 8)}


def model_problem(name: str) -> tuple[LossFn, Params, tuple[int, ...]]:
    """Return a loss, its parameters and the shape of an input."""
    model = {"mlp": mlp, "cnn": cnn}[name]()
    shape = SHAPES[name]
    return make_loss(model, TaskInfo("classification", shape, CLASSES)), model_params(model), shape


def random_examples(count: int, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Examples:
    """Return labelled noise."""
    generator = torch_generator(seed, "test", "examples")
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return Examples(inputs, torch.randint(0, CLASSES, (count,), generator=generator))


def random_batches(num_inner: int, shape: tuple[int, ...], *, coupled: bool, size: int = 6) -> MetaBatches:
    """Return batches of different noise; Hessian batches are the inner ones where coupled."""
    inner = tuple(random_examples(size, shape, 10 + j).as_batch() for j in range(num_inner))
    hessian = inner if coupled else tuple(random_examples(size, shape, 50 + j).as_batch() for j in range(num_inner))
    return MetaBatches(inner, random_examples(size, shape, 99).as_batch(), hessian)


def relative_difference(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return ‖left - right‖ / ‖right‖ over all tensors."""
    difference = sum(float((left[name] - right[name]).square().sum()) for name in right)
    return (difference / sum(float(tensor.square().sum()) for tensor in right.values())) ** 0.5


class CountingLoss:
    """Counts evaluations by batch and records where, so that batches and costs can be checked from outside."""

    def __init__(self, loss: LossFn) -> None:
        self.loss, self.evaluations, self.batches = loss, 0, Counter()
        self._seen: list[Batch] = []  # kept, or a later batch could be given the id of one that is gone

    def __call__(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        self.evaluations += 1
        self.batches[id(batch)] += 1
        self._seen.append(batch)
        return self.loss(params, batch)
