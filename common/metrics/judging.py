"""What a run is judged by: the metrics that its options name, for its task."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from nufed.common.config import EvaluationConfig
from nufed.common.data.target_scaling import TargetScaling
from nufed.common.errors import ConfigError, nearest_match_hint
from nufed.common.examples import TaskInfo
from nufed.common.metric_looks import LOSS, LOSS_LOOK, Look, global_name
from nufed.common.metrics import values
from nufed.common.metrics.judged import Judged, judged
from nufed.common.metrics.own import own_metric
from nufed.common.metrics.registry import METRICS, Compute
from nufed.common.tasks import TASKS, find_task
from nufed.common.tasks.positions import ignored_number

Own = Callable[..., Any]
AUTO = "auto"
MOST_OUTPUTS_EACH = 8
"""Outputs up to which regression is judged by each of them too."""

_TWO_CLASSES = ("auroc", "sensitivity", "specificity")


@dataclass(frozen=True)
class Judging:
    """What a run is judged by.

    Attributes:
        primary: what single numbers, targets and comparisons are about; may be `loss`.
        looks: how the numbers of `loss` and of each metric are read.
        computes: how each metric is computed, without the loss.
    """

    primary: str
    looks: Mapping[str, Look]
    computes: Mapping[str, Compute]

    @property
    def on_the_way(self) -> dict[str, Compute]:
        """Return what is computed in evaluations before the last one: the primary metric, if it is not the loss."""
        return {self.primary: self.computes[self.primary]} if self.primary in self.computes else {}


@lru_cache(maxsize=64)
def judging(evaluation: EvaluationConfig, task: TaskInfo) -> Judging:
    """Return what a run with these options is judged by.

    Raises:
        ConfigError: a metric is unknown, or is not for the task.
    """
    default_names, default_primary = default_metrics(task)
    names: list[str | Own] = []
    for name in _listed(evaluation.metrics, "evaluation.metrics"):
        names += default_names if name == AUTO else [name]
    primary = default_primary if evaluation.primary_metric == AUTO else evaluation.primary_metric
    found = {each: find_metric(each, task, "evaluation.metrics") for each in dict.fromkeys(names) if each != LOSS}
    called: dict[str, str | Own] = {name: each for each, (name, _, _) in found.items()}
    if (key := called.get(primary, primary)) != LOSS:  # a metric of one's own is meant by its name too
        found.setdefault(key, find_metric(key, task, "evaluation.primary-metric"))
    looks, computes = {LOSS: LOSS_LOOK}, {}
    for name, look, compute in found.values():
        if name in computes:
            raise ConfigError(f"evaluation.metrics names two metrics {name!r}. Leave one out, or rename a function.")
        looks[name], computes[name] = look, compute
    primary = LOSS if key == LOSS else found[key][0]
    if evaluation.global_examples:  # computed apart, on other examples (nufed.client.global_skill)
        looks[global_name(primary)] = replace(looks[primary], may_be_undefined=True)
    return Judging(primary, looks, computes)


def default_metrics(task: TaskInfo) -> tuple[list[str | Own], str]:
    """Return the metrics that a task is judged by where the options name none, and the primary one."""
    seam = find_task(task)
    names: list[str | Own] = list(seam.default_metrics)
    if task.kind == "classification" and task.num_outputs == 2:
        names += _TWO_CLASSES
    if task.kind == "regression" and 2 <= task.num_outputs <= MOST_OUTPUTS_EACH:
        names += [f"{name}-{number}" for name in seam.default_metrics for number in range(task.num_outputs)]
    return names, seam.primary_metric


def metrics_for(task: TaskInfo) -> list[str]:
    """Return the names of all metrics of a task."""
    names = [name for name, metric in METRICS.items() if _fits(name, task)]
    names += [
        f"{name}-{number}"
        for name, metric in METRICS.items()
        if task.kind in metric.by_output and task.num_outputs > 1
        for number in range(task.num_outputs)
    ]
    return names


def compute_all(computes: Mapping[str, Compute], of: Judged) -> dict[str, Tensor]:
    """Return each metric, [...]; of outputs that are NaN, whose loss says so, it means nothing."""
    return {name: compute(of) for name, compute in computes.items()}


def evaluate_metrics(
    names: Iterable[str | Own], task: TaskInfo, outputs: Tensor, targets: Any, scaling: TargetScaling | None = None
) -> dict[str, float]:
    """Return metrics of outputs [N, ...] by name; NaN where one is undefined.

    Args:
        names: of `metrics_for`, `module:function`, or functions of one's own.
        task: what outputs and targets are.
        outputs: of the model.
        targets: as they were trained on.
        scaling: how targets were scaled; None where they were not.

    Raises:
        ConfigError: a metric is unknown, or is not for the task.
    """
    found = [find_metric(name, task, "evaluation.metrics") for name in names]
    if bool(outputs.isnan().any()):
        return {name: math.nan for name, _, _ in found}
    of = judged(in_units(outputs, scaling), in_units(targets, scaling), ignored_target(task))
    return {name: float(value) for name, value in compute_all({name: each for name, _, each in found}, of).items()}


def in_units(numbers: Any, scaling: TargetScaling | None) -> Any:
    """Return scaled targets, or predictions of them, in the units that the targets came in."""
    if scaling is None:
        return numbers
    return scaling.undo(numbers)


def ignored_target(task: TaskInfo) -> int | None:
    """Return the target that tokens and masks leave out; None for other tasks."""
    return ignored_number(task) if task.kind in ("tokens", "segmentation") else None


def find_metric(name: str | Own, task: TaskInfo, option: str = "evaluation.metrics") -> tuple[str, Look, Compute]:
    """Return the name, the look and the computation of a metric for a task.

    Raises:
        ConfigError: it is unknown, or is not for the task.
    """
    if not isinstance(name, str) or ":" in name:
        return own_metric(name, option)
    base, _, number = name.rpartition("-")
    if name in METRICS and _fits(name, task):
        metric = METRICS[name]
        return name, metric.look, metric.computes[_kind(name, task)]
    if name in metrics_for(task):
        metric = METRICS[base]
        return name, metric.look, values.of_output(metric.by_output[task.kind], int(number))
    known = metrics_for(task)
    about = "is unknown"
    if name in METRICS:
        tasks = ", ".join(METRICS[name].computes)
        two = " of two classes" if task.kind == "classification" and "classification" in METRICS[name].computes else ""
        about = f"is for {tasks}{two}, and the task is {task.kind} with {task.num_outputs} outputs"
    hint = nearest_match_hint(name, known) if known else ""
    raise ConfigError(f"{option}={name!r} {about}.{hint} Or module:function.")


def _fits(name: str, task: TaskInfo) -> bool:
    kind = _kind(name, task)
    is_of_two = name in ("sensitivity", "specificity") and kind == "classification"
    return kind in METRICS[name].computes and (task.num_outputs == 2 or not is_of_two)


def _kind(name: str, task: TaskInfo) -> str:
    """Return the task whose outputs and targets a metric is computed from; of one's own, the one of the same shapes."""
    if task.kind in TASKS:
        return task.kind
    outputs, targets = find_task(task).output_shape, task.target_shape
    if outputs == targets or (outputs is None and targets == (task.num_outputs,)):
        kinds = ["regression", "counts", "multi-label"]
    elif not targets:
        kinds = ["classification"]
    else:
        kinds = ["segmentation"] if outputs is not None and outputs[1:] == targets else ["tokens"]
    return next((kind for kind in kinds if kind in METRICS[name].computes), task.kind)


def _listed(names: str, option: str) -> list[str]:
    found = [name.strip() for name in names.split(",")]
    if not all(found):
        raise ConfigError(f"{option}={names!r} has an empty name. Give names separated by commas, or auto.")
    return found
