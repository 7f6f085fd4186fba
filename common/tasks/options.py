"""The options of a loss: which task reads which, and what they say."""

import math
from dataclasses import replace

from nufed.common.config.section import Scalar, to_kebab
from nufed.common.config.task import TaskConfig
from nufed.common.errors import ConfigError
from nufed.common.examples import TaskInfo
from nufed.common.tasks.registry import TASKS, find_entry

CLASS_WEIGHTS = "class-weights"


def with_loss_options(info: TaskInfo, config: TaskConfig) -> TaskInfo:
    """Return a task with the loss's options that are not the defaults.

    Raises:
        ConfigError: the task does not read such an option, or class weights are not one positive number for each class.
    """
    defaults, entry = TaskConfig(), find_entry(info.kind)
    given: list[tuple[str, Scalar]] = []
    for field in sorted(TaskConfig.model_fields):
        name, value = to_kebab(field), getattr(config, field)
        if value == getattr(defaults, field):
            continue
        if name not in entry.options:
            readers = ", ".join(_readers(name))
            raise ConfigError(
                f"task.{name}={value!r} is for data.task={readers}, but the task is {info.kind}. Leave it out."
            )
        given.append((name, value))
    options = replace(info, options=tuple(given))
    given_weights(options)
    return options


def given_weights(info: TaskInfo) -> tuple[float, ...] | None:
    """Return the weights that the options give to the classes; None where they give none.

    Raises:
        ConfigError: they are not one positive number for each class.
    """
    text = str(dict(info.options).get(CLASS_WEIGHTS, "none"))
    if text in ("none", "balanced"):
        return None
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"task.{CLASS_WEIGHTS}={text!r} is refused: expected numbers. Correct it.") from error
    if len(weights) != info.num_outputs or not all(0 < weight < math.inf for weight in weights):
        raise ConfigError(
            f"expected {info.num_outputs} weights above 0 in task.{CLASS_WEIGHTS}, one for a class, but got {text!r}. "
            "Give one for each, or balanced."
        )
    return weights


def _readers(name: str) -> list[str]:
    return [kind for kind, entry in TASKS.items() if name in entry.options]
