"""The examination of a loss of one's own before round 1, on the outputs of a few examples."""

import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nufed.common.errors import ModelError
from nufed.common.examples import Batch
from nufed.common.models.agreement import near
from nufed.common.models.culprit import second_derivatives_are_right
from nufed.common.models.nearby import moved
from nufed.common.models.recording import record
from nufed.common.models.second_derivatives import double_backward
from nufed.common.tasks import Task

_DOES_NOT = (
    "Compute it from outputs by differentiable operations alone: no detach(), item(), numpy(), round() or argmax()"
)


def check_loss(task: Task, outputs: Tensor, batch: Batch, *, twice: bool) -> None:
    """Refuse a loss that is not one number for each example, or that cannot be differentiated as it is going to be.

    Args:
        task: of one's own; others are known.
        outputs: [B, ...] of the model, at parameters near its own.
        batch: the examples.
        twice: whether the loss is going to be differentiated twice.

    Raises:
        ModelError: what is wrong with the loss, and what to do.
    """
    if not task.own:
        return
    at = outputs.detach().clone().requires_grad_(True)
    losses = _losses(task, at, batch)
    if losses.shape != (len(batch),) or not losses.is_floating_point():
        raise _refused(
            task,
            f"to give one number for each of {len(batch)} examples, [B]",
            f"it gave {list(losses.shape)}",
            "Leave the mean over examples to NuFed",
        )
    if not bool(torch.isfinite(losses).all()):
        raise _refused(task, "to be finite before training", "it is not", "Keep logarithms and divisions away from 0")
    gradient = None
    if losses.requires_grad:
        (gradient,) = torch.autograd.grad(losses.sum(), at, allow_unused=True)
    if gradient is None or not bool(gradient.any()):
        raise _refused(task, "to have a gradient in the model's outputs", "it has none, or 0 everywhere", _DOES_NOT)
    if not bool(torch.isfinite(gradient).all()):
        raise _refused(
            task, "to have a finite gradient", "it has none", "A root at 0 and a division by 0 have no derivative"
        )
    half = torch.arange(len(batch) // 2, device=outputs.device)
    fewer = _losses(task, at.detach()[half], batch.rows(half))
    if not near(losses[: len(half)].detach(), fewer.detach()):
        raise _refused(
            task,
            "to be computed for each example alone",
            "an example's loss depends on the others of its batch",
            "Take means over an example's own numbers only",
        )
    if twice:
        _check_twice(task, outputs, batch)


def _check_twice(task: Task, outputs: Tensor, batch: Batch) -> None:
    point, wide = moved({"outputs": outputs.detach().double()}), batch.double()

    def total(at: Mapping[str, Tensor]) -> Tensor:
        return task.losses(at["outputs"], wide.targets).sum()

    hint = f"{_DOES_NOT}, or choose method.estimator=hessian-free or first-order"
    try:
        double_backward(total, point, {"outputs": torch.ones_like(point["outputs"])})
        _, recording = record(lambda: total(point))
        is_right = second_derivatives_are_right(total, point, recording)
    except (RuntimeError, NotImplementedError, TypeError, ModelError) as error:
        wanted = "that can be differentiated twice, as method.estimator=exact and unrolled do"
        raise _refused(task, wanted, "it cannot", hint) from error
    if not is_right:
        wanted = "whose second derivatives belong to its gradient, as method.estimator=exact and unrolled need"
        raise _refused(task, wanted, "they do not", hint)


def _losses(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    try:
        losses = task.losses(outputs, batch.targets)
    except Exception as error:  # the user's loss may raise anything, with words that hold data
        cause = error.__cause__ or error
        place = traceback.extract_tb(cause.__traceback__)[-1]
        where = "" if "site-packages" in place.filename else f" ({Path(place.filename).name}, line {place.lineno})"
        came = f"it raised {type(cause).__name__}{where}"
        raise _refused(task, "to take outputs and targets", came, "Correct it") from error
    if not isinstance(losses, Tensor):
        raise _refused(task, "to return a tensor [B]", f"it returned {type(losses).__name__}", "Return a tensor")
    return losses


def _refused(task: Task, wanted: str, came: str, to_do: str) -> ModelError:
    joined = f"a loss {wanted}" if wanted.startswith(("that", "whose")) else f"the loss {wanted}"
    return ModelError(f"expected {joined}, but {came} (data.task={task.own}). {to_do}.")
