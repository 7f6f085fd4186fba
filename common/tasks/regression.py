"""Values for each example: half the squared error, Huber's loss or the absolute error, summed over the values."""

from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.tasks.targets import check_values
from nufed.common.tasks.task import Task


def build(info: TaskInfo) -> Task:
    """Return the task for outputs and targets [B, K].

    `task.loss` chooses between e²/2, |e|, and Huber's, which is e²/2 up to |e| = δ and δ (|e| - δ/2) beyond.
    """
    options = dict(info.options)
    chosen, delta = options.get("loss", "auto"), float(options.get("huber-delta", 1.0))

    def hubers(outputs: Tensor, targets: Tensor) -> Tensor:
        error = outputs - targets
        size = error.abs()
        return (0.5 * error.square()).where(size <= delta, delta * (size - 0.5 * delta)).sum(-1)

    is_squared = chosen in ("auto", "mse")
    return Task(
        losses=_half_squares if is_squared else hubers if chosen == "huber" else _absolutes,
        predictions=lambda outputs: outputs,
        check_targets=lambda targets: check_values(targets, info.num_outputs),
        default_metrics=("mae", "rmse", "r2"),
        primary_metric="loss",
        output_shape=(info.num_outputs,),
        target_shape=(info.num_outputs,),
        needs_float_targets=True,
        by_hand="squared-error" if is_squared else None,
        mean=_half_mean_square if is_squared else None,
    )


def _half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(-1)


def _half_mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().flatten(1).sum(1).mean()


def _absolutes(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().sum(-1)
