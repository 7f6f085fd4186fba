"""Layers that several models are made of."""

from collections.abc import Callable

from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.errors import ConfigError, ModelError
from nufed.common.examples import TaskInfo

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
}


SMALLEST_SIDE = 4
"""Of an image, in pixels: two poolings by 2 leave one."""


def image_shape(name: str, task: TaskInfo) -> tuple[int, int, int]:
    """Return channels, height and width of a task's inputs.

    Args:
        name: of the model.
        task: what is told apart.

    Raises:
        ModelError: the inputs are no images, or smaller than 4 x 4.
    """
    if len(task.input_shape) != 3 or min(task.input_shape[1:]) < SMALLEST_SIDE:
        raise ModelError(
            f"model.name={name} expects images of shape [C, H, W] with H and W of at least {SMALLEST_SIDE}, but the "
            f"inputs have shape {list(task.input_shape)}; use model.name=mlp"
        )
    channels, height, width = task.input_shape
    return channels, height, width


def hidden_sizes(config: ModelConfig) -> list[int]:
    """Return the widths of the hidden layers; empty for none.

    Raises:
        ConfigError: a width is 0.
    """
    sizes = [int(size) for size in config.hidden_sizes.split(",") if size]
    if 0 in sizes:
        raise ConfigError(
            f"model.hidden-sizes={config.hidden_sizes!r} has a layer of width 0. Leave it out, or give it a width."
        )
    return sizes


def activated(layer: nn.Module, config: ModelConfig) -> list[nn.Module]:
    """Return a layer, its activation, and dropout if the configuration has any."""
    dropout = [nn.Dropout(config.dropout)] if config.dropout > 0 else []
    return [layer, ACTIVATIONS[config.activation](), *dropout]
