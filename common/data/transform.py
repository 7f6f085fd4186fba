"""Heterogeneity by degrees: each client sees its examples through a transform of its own, drawn from its own stream.

`data.transform-strength` in [0, 1] says how far the clients differ; the same seed draws the same direction at every
strength, so that runs of several strengths are comparable.

* rotate: a client's images are turned by one angle, uniform in ±180° times the strength, as in "rotated MNIST"
  (bilinear, what comes from outside is 0).
* permute-labels: a share of the classes, the strength, change places by one permutation. Two clients then disagree on
  what the same image is called, so that no single model can serve both without adaptation.
* two-groups: every second client has an older device and another code of the classes: its inputs are dimmed, times
  1 - 0.7 times the strength, and a share of the classes, the strength, is renamed in a ring, the same for the whole
  group. Dim clients have small gradients: they count least in a mean of losses, and adapt most slowly.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from nufed.common.config import DataConfig
from nufed.common.data.pool import DealtFederation
from nufed.common.errors import ConfigError
from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.input_forms import described_inputs
from nufed.common.rng import derive_seed, torch_generator
from nufed.common.trees import one_tensor

Change = Callable[[Examples], Examples]

DIMMING = 0.7
"""How much less light the second of two groups sees at strength 1."""


def transform_clients(dealt: DealtFederation, config: DataConfig, seed: int) -> DealtFederation:
    """Return the federation with every client, new ones too, behind its transform; the same one if there is none.

    Raises:
        ConfigError: the task has no images to rotate, or no classes to rename.
    """
    if config.transform == "none":
        return dealt
    _check_fits(config, dealt.task)

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        client = dealt.make_client(partition_id, dtype)
        change = _CHANGES[config.transform](_Place(config, dealt.task, seed, partition_id, client.client_id))
        return replace(
            client, support=change(client.support), validation=change(client.validation), test=change(client.test)
        )

    return replace(dealt, make_client=make_client)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Return images [N, C, H, W] turned counterclockwise around their center, of the same shape."""
    if not len(images):  # a new client's validation split
        return images
    height, width = images.shape[2:]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Sampling positions are in [-1, 1] on both axes: the factors keep pixels square where H and W differ.
    matrix = torch.tensor(
        [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]], dtype=images.dtype
    )
    grid = functional.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


def label_permutation(num_classes: int, strength: float, generator: torch.Generator) -> Tensor:
    """Return [C]: what each class is called; round(strength * C) of the classes change places, uniformly.

    A uniform permutation may leave a class where it is.
    """
    order = torch.randperm(num_classes, generator=generator)
    chosen = order[: round(strength * num_classes)]
    names = torch.arange(num_classes)
    names[chosen] = chosen[torch.randperm(len(chosen), generator=generator)]
    return names


def ring_names(num_classes: int, strength: float, generator: torch.Generator) -> Tensor:
    """Return [C]: what each class is called; round(strength * C) classes each take the next one's name."""
    chosen = torch.randperm(num_classes, generator=generator)[: round(strength * num_classes)]
    names = torch.arange(num_classes)
    names[chosen] = chosen.roll(-1)
    return names


def _check_fits(config: DataConfig, task: TaskInfo) -> None:
    if config.transform in ("rotate", "two-groups") and task.input_spec is not None:
        raise ConfigError(
            f"data.transform={config.transform} needs inputs that are one tensor of numbers, but {config.source} has "
            f"inputs {described_inputs(task)}; set data.transform=none."
        )
    if config.transform == "rotate" and task.kind == "segmentation":
        raise ConfigError(
            "data.transform=rotate would turn the images and not their masks (data.task=segmentation); set "
            "data.transform=none."
        )
    if config.transform == "rotate" and len(task.input_shape) != 3:
        raise ConfigError(
            f"data.transform=rotate needs images of shape [C, H, W], but {config.source} has inputs of shape "
            f"{list(task.input_shape)}; set data.transform=none or choose a source of images."
        )
    if config.transform in ("permute-labels", "two-groups") and task.kind != "classification":
        raise ConfigError(
            f"data.transform={config.transform} needs classes, but {config.source} is a {task.kind} task; "
            "set data.transform=none or choose a source with classes."
        )


@dataclass(frozen=True)
class _Place:
    """Whose examples are changed, and in which run."""

    config: DataConfig
    task: TaskInfo
    seed: int
    partition_id: int
    client_id: str

    @property
    def purpose(self) -> tuple[str, ...]:
        """Return what the client's own draw is for."""
        return ("data", "transform", self.config.transform, self.client_id)


def _rotation(place: _Place) -> Change:
    fraction = derive_seed(place.seed, *place.purpose) / 2**63
    degrees = place.config.transform_strength * 180.0 * (2 * fraction - 1)
    return lambda examples: replace(examples, inputs=rotate(one_tensor(examples.inputs), degrees))


def _renaming(place: _Place) -> Change:
    generator = torch_generator(place.seed, *place.purpose)
    names = label_permutation(place.task.num_outputs, place.config.transform_strength, generator)
    return lambda examples: replace(examples, targets=names[one_tensor(examples.targets, "targets")])


def _second_group(place: _Place) -> Change:
    if place.partition_id % 2 == 0:
        return lambda examples: examples
    strength = place.config.transform_strength
    generator = torch_generator(place.seed, "data", "transform", "two-groups")  # one code for the whole group
    gain, names = 1.0 - DIMMING * strength, ring_names(place.task.num_outputs, strength, generator)
    return lambda examples: replace(
        examples,
        inputs=gain * one_tensor(examples.inputs),
        targets=names[one_tensor(examples.targets, "targets")],
    )


_CHANGES: dict[str, Callable[[_Place], Change]] = {
    "rotate": _rotation,
    "permute-labels": _renaming,
    "two-groups": _second_group,
}
