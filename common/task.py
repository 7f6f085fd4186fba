"""Losses and accuracy: from a model and a task to a function of parameters and a batch."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import Tensor, nn
from torch.func import functional_call

from common.examples import Batch, TaskInfo
from common.rng import seeded_torch

LossFn = Callable[[Mapping[str, Tensor], Batch], Tensor]


def task_loss(task: TaskInfo, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return cross-entropy, or half the squared error summed over outputs; mean over examples."""
    if task.kind == "classification":
        return F.cross_entropy(outputs, targets)
    return 0.5 * (outputs - targets).square().flatten(1).sum(1).mean()


def make_loss(model: nn.Module, task: TaskInfo) -> LossFn:
    """Return `loss(params, batch)`, a scalar tensor; dropout masks follow `batch.mask_seed`."""

    def loss(params: Mapping[str, Tensor], batch: Batch) -> Tensor:
        if batch.mask_seed is None:
            outputs = functional_call(model, dict(params), (batch.inputs,))
        else:
            with seeded_torch(batch.mask_seed, (batch.inputs.device,)):
                outputs = functional_call(model, dict(params), (batch.inputs,))
        return task_loss(task, outputs, batch.targets)

    return loss


@torch.no_grad()
def judge(model: nn.Module, task: TaskInfo, params: Mapping[str, Tensor], batch: Batch) -> tuple[float, float | None]:
    """Return (mean loss, accuracy in [0, 1] or None for regression) of a model in evaluation mode."""
    outputs = functional_call(model, dict(params), (batch.inputs,))
    loss = float(task_loss(task, outputs, batch.targets))
    if task.kind == "regression":
        return loss, None
    return loss, float((outputs.argmax(1) == batch.targets).double().mean())
