"""The one seam between what a model gives and what it is for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from nufed.common.trees import Tree

ByHand = Literal["cross-entropy", "squared-error"]


@dataclass(frozen=True)
class Task:
    """What outputs mean.

    Attributes:
        losses: (outputs [..., *output_shape], targets [..., *target_shape]) -> each example's loss, [...]; of one's
            own task of [B, ...] alone.
        predictions: outputs -> what a user is given: probabilities, rates, values, labels' or masks' probabilities.
        check_targets: raises a DataError for targets [N, ...] that are not what the task compares with.
        default_metrics: what it is judged by beside the loss, names or functions.
        primary_metric: the one that it is reported by; `loss` where there is none.
        output_shape: shape of one example's outputs; None where any will do.
        target_shape: shape of one example's targets.
        needs_float_targets: whether targets are of the run's precision; else they are integers. None leaves integers
            integers, and gives floating-point numbers the run's precision.
        by_hand: the loss whose derivatives `nufed.common.steps` has by hand; None for any other.
        mean: (outputs, targets) -> the mean of the losses, where there is a faster way to it.
        own: where the loss is the user's own, what `data.task` says; else empty.
    """

    losses: Callable[[Tensor, Any], Tensor]
    predictions: Callable[[Tensor], Tensor]
    check_targets: Callable[[Tree], None]
    default_metrics: tuple[str | Callable[..., Any], ...]
    primary_metric: str
    output_shape: tuple[int, ...] | None
    target_shape: tuple[int, ...]
    needs_float_targets: bool | None
    by_hand: ByHand | None = None
    mean: Callable[[Tensor, Any], Tensor] | None = None
    own: str = ""

    def loss(self, outputs: Tensor, targets: Tree, weights: Tensor | None = None) -> Tensor:
        """Return the mean over examples of their losses, each times its weight; a scalar tensor."""
        if weights is not None:
            return (self.losses(outputs, targets) * weights).mean()
        return self.mean(outputs, targets) if self.mean else self.losses(outputs, targets).mean()
