"""Which models are plain fully connected networks, whose derivatives `nufed.common.steps.cohort_dense` has by hand."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules import module as torch_module

from nufed.common.examples import TaskInfo
from nufed.common.params import trained_parameters
from nufed.common.steps.activations import Activation, find_activation
from nufed.common.tasks import is_plain


@dataclass(frozen=True)
class DenseLayer:
    """A linear layer.

    Attributes:
        weight: name of its parameter [outputs, inputs].
        bias: name of its parameter [outputs]; None without one.
        shape: (outputs, inputs).
        activation: what follows; None after the last layer.
    """

    weight: str
    bias: str | None
    shape: tuple[int, int]
    activation: Activation | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of its parameters."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)


def dense_layers(model: nn.Module, task: TaskInfo) -> tuple[DenseLayer, ...] | None:
    """Return the layers of a model that is [flatten,] linear, activation, linear, …, linear, or None for any other.

    Dropout in evaluation mode, or of probability 0, is passed over. Modules with hooks or a forward pass of their own,
    weights that layers share, parameters that are no layer's, and frozen ones make a model another one; so does a task
    whose loss is not known by hand.
    """
    if (
        type(model) is not nn.Sequential
        or not is_plain(task)
        or (len(task.input_shape) > 1 and not _starts_flat(model))
    ):
        return None
    is_hooked = torch_module._has_any_global_hook()  # type: ignore[no-untyped-call]
    if is_hooked or not all(map(_is_unaltered, model.modules())):
        return None
    layers: list[DenseLayer] = []
    for name, module in model._modules.items():  # named_children passes over a module that occurs again
        if type(module) is nn.Flatten and not layers and (module.start_dim, module.end_dim) == (1, -1):
            continue
        if type(module) is nn.Dropout and (module.p == 0 or not module.training):
            continue
        if type(module) is nn.Linear and (not layers or layers[-1].activation):
            bias = f"{name}.bias" if module.bias is not None else None
            layers.append(DenseLayer(f"{name}.weight", bias, (module.out_features, module.in_features)))
        elif module and layers and layers[-1].activation is None and (activation := find_activation(module)):
            layers[-1] = replace(layers[-1], activation=activation)
        else:
            return None
    is_complete = bool(layers) and layers[-1].activation is None
    # The model's names leave out those of a shared tensor but the first.
    return tuple(layers) if is_complete and parameter_names(layers) == _names(model) else None


def parameter_names(layers: Iterable[DenseLayer]) -> set[str]:
    """Return the names of all weights and biases."""
    return {name for layer in layers for name in layer.names}


def _names(model: nn.Module) -> set[str]:
    return set(trained_parameters(model))


def _starts_flat(model: nn.Sequential) -> bool:
    return len(model) > 0 and type(model[0]) is nn.Flatten


def _is_unaltered(module: nn.Module) -> bool:
    """Return whether calling the module is what its class says."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(module)
