"""The tasks by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from nufed.common.examples import TaskInfo
from nufed.common.registry import find_registered
from nufed.common.tasks import classification, regression
from nufed.common.tasks.task import Task


@dataclass(frozen=True)
class TaskEntry:
    """A task: how it is made for a model's form and a loss's options, and one line about it."""

    build: Callable[[TaskInfo], Task]
    description: str


TASKS: dict[str, TaskEntry] = {
    "classification": TaskEntry(classification.build, "one class for each example; cross-entropy"),
    "regression": TaskEntry(regression.build, "values for each example; half the squared error"),
}


def is_plain(info: TaskInfo) -> bool:
    """Return whether one floating-point tensor goes in, and the loss is one that is known by hand."""
    return info.input_spec is None and find_task(info).by_hand is not None


@lru_cache(maxsize=64)
def find_task(info: TaskInfo) -> Task:
    """Return what outputs mean for a task.

    Raises:
        ConfigError: the kind is unknown.
    """
    return find_registered(TASKS, info.kind, what="task", option="data.task").build(info)
