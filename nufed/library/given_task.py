"""A task and metrics given in Python: functions, named by what they are."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from nufed.common.config import RunConfig, Scalar
from nufed.common.errors import ConfigError
from nufed.common.examples import TaskInfo
from nufed.common.given import GIVEN
from nufed.common.tasks import OwnTask
from nufed.library.arguments import kind_of, needed_arguments
from nufed.library.content import content_name

TASK, METRICS, PRIMARY = "data.task", "evaluation.metrics", "evaluation.primary-metric"


@dataclass(frozen=True)
class GivenTask:
    """Says what outputs mean; called as every function of `data.task` is.

    Attributes:
        given: an `OwnTask`, a function of losses of (outputs, targets), or one of (TaskInfo) that returns an `OwnTask`.
        num_arguments: how many it takes; None for an `OwnTask`.
    """

    given: Any
    num_arguments: int | None

    def __call__(self, info: TaskInfo) -> Any:
        """Return the `OwnTask`; what a function returns is checked by the caller."""
        if self.num_arguments is None:
            return self.given
        return OwnTask(losses=self.given) if self.num_arguments == 2 else self.given(info)


@dataclass(frozen=True)
class GivenJudging:
    """What was said of task and metrics, as options, and what was given in Python by the names in these options."""

    options: dict[str, Scalar] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)

    def and_(self, option: str, value: str, objects: dict[str, Any]) -> "GivenJudging":
        """Return it with one more option."""
        return replace(self, options={**self.options, option: value}, objects={**self.objects, **objects})


def read_judging(task: Any, metrics: Any, primary_metric: Any) -> GivenJudging:
    """Return what `task`, `metrics` and `primary_metric` of `nufed.simulate` say; nothing of those that are None.

    Raises:
        ConfigError: one is neither a name nor a function as expected, or of a function nothing can be known.
    """
    said = GivenJudging()
    if task is not None:
        name, objects = (task, {}) if isinstance(task, str) else _named(_read_task(task), "task")
        said = said.and_(TASK, name, objects)
    if metrics is not None:
        each = [_metric(metric, "metrics") for metric in _several(metrics)]
        known = {name: function for _, objects in each for name, function in objects.items()}
        said = said.and_(METRICS, ",".join(name for name, _ in each), known)
    if primary_metric is not None:
        said = said.and_(PRIMARY, *_metric(primary_metric, "primary_metric"))
    return said


def names_by_argument(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Yield the options' names for what may have been given in Python, and the arguments that it is given by."""
    yield config.data.source, "dataset"
    yield config.model.name, "model"
    yield config.data.task, "task"
    yield from ((name, "metrics") for name in config.evaluation.metrics.split(","))
    yield config.evaluation.primary_metric, "primary_metric"


def _read_task(task: Any) -> GivenTask:
    if isinstance(task, OwnTask):
        return GivenTask(task, None)
    expected = (
        "task expects a nufed.OwnTask, a function (outputs, targets) that returns each example's loss [B], a function "
        "(TaskInfo) that returns an OwnTask, or a name such as 'counts'"
    )
    if not callable(task):
        raise ConfigError(f"{expected}, but got {kind_of(task)}.")
    if isinstance(task, type):
        raise ConfigError(f"{expected}, but got the class {task.__name__}. Give an object of it.")
    needed = _num_needed(task)
    if needed not in (1, 2):
        raise ConfigError(
            f"{expected}, but got a function of {needed} arguments. Bind the others, e.g. with functools.partial."
        )
    return GivenTask(task, needed)


def _metric(metric: Any, what: str) -> tuple[str, dict[str, Callable[..., Any]]]:
    """Return how the options name a metric, and what was given by that name."""
    if isinstance(metric, str):
        return metric if ":" in metric else metric.strip().replace("_", "-"), {}
    if not callable(metric) or isinstance(metric, type) or _num_needed(metric) != 2:
        raise ConfigError(
            f"{what} expects names, and functions (outputs, targets) that return a float, but got {kind_of(metric)}."
        )
    return _named(metric, what)


def _several(metrics: Any) -> Iterable[Any]:
    if isinstance(metrics, str):
        return metrics.split(",")
    if callable(metrics) or not isinstance(metrics, Iterable):
        return [metrics]
    return list(metrics) or [""]  # which is refused as an empty name


def _named(value: Any, what: str) -> tuple[str, dict[str, Any]]:
    name = f"{GIVEN}:{content_name(value.given if isinstance(value, GivenTask) else value, what)}"
    return name, {name: value}


def _num_needed(function: Any) -> int:
    """Return how many arguments a function needs; 2 where that cannot be known, as of some built-in ones."""
    try:
        return len(needed_arguments(function.forward if isinstance(function, nn.Module) else function))
    except ValueError:
        return 2
