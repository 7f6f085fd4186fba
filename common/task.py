"""Losses and accuracy: from a model and a task to a function of parameters and a batch."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import Tensor, nn

from nufed.common.examples import Batch, TaskInfo
from nufed.common.metrics import measured
from nufed.common.rng import seeded_torch

LossFn = Callable[[Mapping[str, Tensor], Batch], Tensor]

_FORWARD = threading.RLock()
"""Held during a forward pass: the clients of one process share its models and torch's default generator."""


def task_loss(task: TaskInfo, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return cross-entropy, or half the squared error summed over outputs; mean over examples."""
    if task.kind == "classification":
        return F.cross_entropy(outputs, targets)
    return 0.5 * (outputs - targets).square().flatten(1).sum(1).mean()


def with_params(model: nn.Module) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
    """Return `outputs(params, inputs)`: the model's outputs with other parameters in the place of its own.

    What `torch.func.functional_call` does, at a tenth of its overhead: where the parameters live is looked up once.
    The model's own parameters are back in place after each call, also when it raises. Threads take turns.
    """
    places = _places(model)

    def outputs(params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        with _FORWARD:
            own = [table[key] for _, table, key in places]
            try:
                for name, table, key in places:
                    table[key] = params[name]
                return cast("Tensor", model(inputs))
            finally:
                for (_, table, key), tensor in zip(places, own, strict=True):
                    table[key] = tensor

    return outputs


def _places(model: nn.Module) -> list[tuple[str, dict[str, Any], str]]:
    """Return (name, table, key) of all places that a parameter is read from; a shared one has several."""
    names = {id(tensor): name for name, tensor in model.named_parameters()}
    return [
        (names[id(tensor)], module._parameters, key)
        for module in model.modules()
        for key, tensor in module._parameters.items()
        if tensor is not None
    ]


@dataclass(frozen=True)
class ModelLoss:
    """A model's loss on a task; equal for the same model and task, so that what is compiled for one serves the other.

    Attributes:
        model: its own parameters are not used.
        task: what the loss is.
        outputs: the model's outputs as a function of parameters and inputs.
    """

    model: nn.Module
    task: TaskInfo
    outputs: Callable[[Mapping[str, Tensor], Tensor], Tensor] = field(compare=False, repr=False)

    def __call__(self, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Return the loss, a scalar tensor; dropout masks follow `batch.mask_seed`."""
        if batch.mask_seed is None:
            return task_loss(self.task, self.outputs(params, batch.inputs), batch.targets)
        with _FORWARD, seeded_torch(batch.mask_seed, (batch.inputs.device,)):
            return task_loss(self.task, self.outputs(params, batch.inputs), batch.targets)


def make_loss(model: nn.Module, task: TaskInfo) -> ModelLoss:
    """Return `loss(params, batch)`, a scalar tensor; dropout masks follow `batch.mask_seed`."""
    return ModelLoss(model, task, with_params(model))


def judge(model: nn.Module, task: TaskInfo, params: Mapping[str, Tensor], batch: Batch) -> tuple[float, float | None]:
    """Return (mean loss, accuracy in [0, 1] or None for regression) of a model in evaluation mode."""
    found = judged_by_all(model, task, params, batch)
    return found["loss"], found.get("accuracy")


@torch.no_grad()
def judged_by_all(model: nn.Module, task: TaskInfo, params: Mapping[str, Tensor], batch: Batch) -> dict[str, float]:
    """Return `loss` and all metrics of the task (`nufed.common.metrics`) of a model in evaluation mode."""
    outputs = with_params(model)(params, batch.inputs)
    loss = float(task_loss(task, outputs, batch.targets))
    return {"loss": loss, **measured(task.kind, outputs, batch.targets)}
