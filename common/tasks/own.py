"""`python:module:function`: a task of one's own, from a function of one's own; or one given in Python.

The function is called with the `TaskInfo` and returns an `OwnTask`. The module may lie in the working folder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nufed.common.errors import ConfigError, ModelError
from nufed.common.examples import TaskInfo
from nufed.common.given import find_given, is_given
from nufed.common.tasks.task import Task
from nufed.common.trees import Tree
from nufed.common.user_code import guarded, load_function

PREFIX = "python:"


def is_own(kind: str) -> bool:
    """Return whether a task is one of the user's own."""
    return kind.startswith(PREFIX) or is_given(kind)


def _as_they_are(outputs: Tensor) -> Tensor:
    return outputs


def _accepted(_targets: Tree) -> None:
    """Refuse nothing."""


@dataclass(frozen=True)
class OwnTask:
    """What a function of one's own says of a task.

    Attributes:
        losses: (outputs [B, ...], targets [B, ...]) -> each example's loss [B], which depends on that example alone.
        predictions: outputs -> what a user is given.
        metrics: names of NuFed's metrics, functions, or `module:function`, that it is judged by beside the loss.
        primary_metric: the one of these that it is reported by, by its name, or `loss`.
        check_targets: raises an error for targets that cannot be compared with.
        output_shape: shape of one example's outputs; None where any will do.
    """

    losses: Callable[[Tensor, Any], Tensor]
    predictions: Callable[[Tensor], Tensor] = _as_they_are
    metrics: Sequence[str | Callable[..., Any]] = ()
    primary_metric: str = "loss"
    check_targets: Callable[[Any], None] = _accepted
    output_shape: tuple[int, ...] | None = None


def build(info: TaskInfo) -> Task:
    """Return the task that a function makes.

    Raises:
        ConfigError: there is no such function, it returns no `OwnTask`, or was given in Python elsewhere.
        ModelError: the function raises an error.
    """
    what = f"data.task={info.kind!r}"
    here = Path.cwd()
    if is_given(info.kind):
        made = guarded(find_given(info.kind, ConfigError, "task"), what, ModelError, here)(info)
    else:
        made = load_function(info.kind.removeprefix(PREFIX), "data.task", ModelError)(info)
    if not isinstance(made, OwnTask):
        raise ConfigError(
            f"expected {what} to return a nufed.OwnTask, but it returned {type(made).__name__}; return "
            "OwnTask(losses=…), with your loss of each example"
        )
    return Task(
        losses=guarded(made.losses, f"the loss of {what}", ModelError, here),
        predictions=guarded(made.predictions, f"the predictions of {what}", ModelError, here),
        check_targets=made.check_targets,
        default_metrics=tuple(made.metrics),
        primary_metric=made.primary_metric,
        output_shape=made.output_shape,
        target_shape=info.target_shape,
        needs_float_targets=None,
        own=info.kind,
    )
