"""Layers that several models are made of."""

from collections.abc import Callable

from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.errors import ConfigError

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "relu": nn.ReLU,
}


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
