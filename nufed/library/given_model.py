"""A model given in Python: a module or a function that makes one, named by what it computes."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.errors import ConfigError, ModelError
from nufed.common.examples import TaskInfo
from nufed.common.given import GIVEN, given
from nufed.common.input_forms import dummy_inputs
from nufed.common.models import build_model
from nufed.common.params import trained_parameters
from nufed.common.rng import torch_generator
from nufed.common.task import call_model
from nufed.common.trees import Tree, tree_map
from nufed.common.user_code import guarded
from nufed.library.arguments import needed_arguments

_TRIED = f"{GIVEN}:model"
_NUM_PROBES = 3


@dataclass(frozen=True)
class GivenModel:
    """Makes a new model like the one given; called as every function of `model.name` is.

    Attributes:
        given: a module, which is copied with its parameters, or a function of no argument, of (task) or of
            (config, task).
        num_arguments: how many it takes; None for a module.
    """

    given: nn.Module | Callable[..., Any]
    num_arguments: int | None

    def __call__(self, config: ModelConfig, task: TaskInfo) -> Any:
        """Return a new model; what the user's function returns is checked by `build_model`."""
        if self.num_arguments is None:
            return copy.deepcopy(self.given)
        arguments = (config, task)[2 - self.num_arguments :]
        return guarded(self.given, "model", ModelError, Path.cwd())(*arguments)


def read_model(model: Any) -> GivenModel:
    """Return what makes the model.

    Raises:
        ConfigError: it is neither a module nor a function with at most two arguments.
    """
    if isinstance(model, nn.Module):
        return GivenModel(model, None)
    if not callable(model):
        raise ConfigError(
            "model expects a torch.nn.Module, a function that returns one, or a name such as 'mlp' or 'module:function'"
            f", but got {type(model).__name__}."
        )
    try:
        needed, named = needed_arguments(model), needed_arguments(model, by_name=True)
    except ValueError:  # some built-in callables have none
        return GivenModel(model, 0)
    if named:
        raise ConfigError(
            f"model expects a function whose arguments are given by position, but {named[0]!r} is by name only. Leave "
            "the * out, or bind it with functools.partial."
        )
    if len(needed) > 2:
        raise ConfigError(
            f"model expects a function of no argument, of (task) or of (config, task), but it needs {len(needed)}: "
            f"{', '.join(needed)}. Bind the others, e.g. with functools.partial."
        )
    return GivenModel(model, len(needed))


def fingerprint(model: GivenModel, config: ModelConfig, task: TaskInfo, *, seed: int) -> str:
    """Return `given:` and 16 hexadecimal digits that follow from a model's structure, parameters and outputs.

    The outputs are rounded, so that the machine does not matter.

    Raises:
        ModelError: the model cannot be built, does not fit the task or cannot be meta-trained.
    """
    with given({_TRIED: model}):
        built = build_model(config.model_copy(update={"name": _TRIED}), task, seed=seed)
    digest = hashlib.sha256(repr(built).encode())
    for name, tensor in built.named_parameters():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    if len(trained := trained_parameters(built)) < len(list(built.parameters())):
        digest.update(f"trained: {' '.join(trained)}\n".encode())
    digest.update(_outputs(built.eval(), task).encode())
    return f"{GIVEN}:{digest.hexdigest()[:16]}"


@torch.no_grad()
def _outputs(model: nn.Module, task: TaskInfo) -> str:
    """Return rounded outputs on fixed inputs: two models that differ in their forward pass alone differ here."""
    like, digits = next(model.parameters()), 3
    probe: Tree = torch.randn(
        _NUM_PROBES, *task.input_shape, generator=torch_generator(0, "probe"), dtype=torch.float64
    )
    if task.input_spec is not None:
        probe = dummy_inputs(task, _NUM_PROBES, torch.zeros(0, dtype=torch.float64))
    try:
        outputs, digits = call_model(copy.deepcopy(model).double(), probe), 6
    except RuntimeError:  # a forward pass that insists on its own type
        outputs = call_model(model, tree_map(lambda leaf: leaf.to(like) if leaf.is_floating_point() else leaf, probe))
    return " ".join(f"{value:.{digits - 1}e}" for value in outputs.double().flatten().tolist())
