"""The models by name, and `build_model`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.errors import ConfigError, ModelError, nearest_match_hint
from nufed.common.examples import TaskInfo
from nufed.common.given import find_given, is_given
from nufed.common.models import cnn, fedavg_cnn, huggingface, linear, mlp
from nufed.common.models.checks import check_model, check_parameters, in_precision
from nufed.common.models.frozen import freeze_all_but, in_training_mode, load_frozen
from nufed.common.rng import derive_seed, seeded_generators
from nufed.common.settings import process_settings
from nufed.common.user_code import load_function

Build = Callable[[ModelConfig, TaskInfo], nn.Module]

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class ModelSpec:
    """A model.

    Attributes:
        build: how it is made; what it draws is seeded.
        description: one line for the user.
        argument: what follows the colon in `model.name`; empty if nothing does.
    """

    build: Build
    description: str
    argument: str = ""


MODELS: dict[str, ModelSpec] = {
    "mlp": ModelSpec(mlp.build, "fully connected layers of the widths in model.hidden-sizes"),
    "cnn": ModelSpec(cnn.build, "two convolution blocks with GroupNorm and average pooling, for images"),
    "fedavg-cnn": ModelSpec(
        fedavg_cnn.build, "two 5 x 5 convolutions with max-pooling, then layers of the widths in model.hidden-sizes"
    ),
    "linear": ModelSpec(linear.build, "one linear layer: logistic regression, or least squares without bias"),
    huggingface.NAME: ModelSpec(
        huggingface.build, "a model of transformers from a folder on this machine, with LoRA if asked for", "FOLDER"
    ),
}


def build_model(config: ModelConfig, task: TaskInfo, *, seed: int) -> nn.Module:
    """Return a new model for a task, initialized from the run's seed, in `config.dtype`, in training mode.

    Raises:
        ConfigError: there is no model of that name.
        ModelError: the model does not fit the task or cannot be meta-trained.
    """
    build = _find_build(config.name)
    with seeded_generators(derive_seed(seed, "model")):
        model = build(config, task)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected model.name={config.name!r} to return a torch.nn.Module, but it returned "
            f"{type(model).__name__}; return the module"
        )
    check_parameters(model)
    if config.trainable:
        freeze_all_but(model, config.trainable)
    frozen = process_settings().frozen
    if frozen and not _reads_frozen(config.name, frozen):
        load_frozen(model, frozen)
    model = in_training_mode(in_precision(model, DTYPES[config.dtype]))
    check_model(model, task)
    return model


def _reads_frozen(name: str, path: Path) -> bool:
    """Return whether the function that builds a model has read its frozen part from a path itself."""
    return name.startswith(f"{huggingface.NAME}:") and huggingface.is_folder_of_model(path)


def _find_build(name: str) -> Build:
    spec, argument = MODELS.get(name.partition(":")[0]), name.partition(":")[2]
    if spec and spec.argument and not argument:
        raise ConfigError(f"model.name={name!r} lacks its argument; write {name.rstrip(':')}:{spec.argument}.")
    if spec and bool(spec.argument) == bool(argument):
        return spec.build
    if is_given(name):
        build: Build = find_given(name, ModelError, "model")
        return build
    if ":" in name:
        return load_function(name, "model.name", ModelError)
    raise ConfigError(f"model.name={name!r} is unknown.{nearest_match_hint(name, MODELS)} Or module:function.")
