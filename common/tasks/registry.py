"""The tasks by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from nufed.common.examples import TaskInfo
from nufed.common.registry import find_registered
from nufed.common.tasks import classification, counts, multi_label, own, regression, segmentation, tokens
from nufed.common.tasks.task import Task


@dataclass(frozen=True)
class TaskEntry:
    """A task.

    Attributes:
        build: how it is made for a model's form and a loss's options.
        description: one line.
        options: those of the section `task` that it reads, by name.
    """

    build: Callable[[TaskInfo], Task]
    description: str
    options: tuple[str, ...] = ()


TASKS: dict[str, TaskEntry] = {
    "classification": TaskEntry(
        classification.build, "one class for each example; cross-entropy", ("class-weights", "label-smoothing")
    ),
    "multi-label": TaskEntry(
        multi_label.build, "labels that an example may have or not; binary cross-entropy", ("label-smoothing",)
    ),
    "regression": TaskEntry(
        regression.build,
        "values for each example; half the squared error, Huber's or the absolute one",
        ("loss", "huber-delta"),
    ),
    "counts": TaskEntry(counts.build, "counts for each example; Poisson's likelihood, outputs are log rates"),
    "segmentation": TaskEntry(
        segmentation.build,
        "a class for each pixel; cross-entropy and Dice",
        ("dice-weight", "ignore-index", "label-smoothing"),
    ),
    "tokens": TaskEntry(
        tokens.build,
        "a class for each position of a sequence; cross-entropy, padding left out",
        ("ignore-index", "label-smoothing"),
    ),
}
OWN = TaskEntry(own.build, "a function of your own, python:module:function")


def is_plain(info: TaskInfo) -> bool:
    """Return whether one floating-point tensor goes in, and the loss is one that is known by hand."""
    return info.input_spec is None and find_task(info).by_hand is not None


@lru_cache(maxsize=64)
def find_task(info: TaskInfo) -> Task:
    """Return what outputs mean for a task.

    Raises:
        ConfigError: the kind is unknown.
    """
    return find_entry(info.kind).build(info)


def find_entry(kind: str) -> TaskEntry:
    """Return the registered task, or that of one's own.

    Raises:
        ConfigError: the kind is unknown.
    """
    if own.is_own(kind):
        return OWN
    return find_registered(TASKS, kind, what="task", option="data.task")
