"""What the public functions are given, checked by kind: what is easily mixed up is refused in one sentence."""

import inspect
import math
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, ModelError


def as_folder(value: Any, name: str) -> Path:
    """Return a path.

    Raises:
        ConfigError: the value is none.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{name} expects the path of a folder, but got {kind_of(value)}. Give a text or a Path.")
    return Path(value)


def as_count(value: Any, name: str) -> int:
    """Return a whole number of 0 or more.

    Raises:
        ConfigError: the value is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ConfigError(f"{name} expects a whole number of 0 or more, but got {value!r}. Give one.")
    return number


def as_step_size(value: Any, name: str, *, above_zero: bool) -> float:
    """Return a finite step size, of a number or of a tensor with one element.

    Raises:
        ConfigError: the value is none.
    """
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not (0 < number < math.inf or (number == 0 and not above_zero)):
        least = "above 0" if above_zero else "of 0 or more"
        raise ConfigError(f"Expected a step size {least}, but got {name}={value!r}.")
    return number


def as_module(value: Any) -> nn.Module:
    """Return a module.

    Raises:
        ModelError: the value is something else, a run for example.
    """
    if not isinstance(value, nn.Module):
        hint = "give the run's .model" if hasattr(value, "model") else "give the module itself, e.g. run.model"
        raise ModelError(f"expected the model to be a torch.nn.Module, but got {kind_of(value)}; {hint}")
    return value


def as_config(value: Any) -> RunConfig | None:
    """Return a configuration, or None.

    Raises:
        ConfigError: the value is something else, a section or a file's path for example.
    """
    if value is None or isinstance(value, RunConfig):
        return value
    raise ConfigError(
        f"config expects a nufed.RunConfig, but got {kind_of(value)}. Read a file with nufed.RunConfig.load(path), "
        "make one as nufed.RunConfig(method=nufed.MethodConfig(...)), or give single options by name."
    )


def as_name(value: Any, name: str) -> str:
    """Return a text that is one of a list of names.

    Raises:
        ConfigError: the value is no text.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{name} expects a name, but got {kind_of(value)}. Give a text.")
    return value


def as_attack(attack: Any, attackers: Any) -> tuple[str, int] | None:
    """Return name and number of attackers, or None where neither is given.

    Raises:
        ConfigError: one is given alone, the name is no text, or the number no whole number of 1 or more.
    """
    if attack is None and attackers is None:
        return None
    if attack is None or attackers is None:
        raise ConfigError("Expected attack= and attackers= together. Give both, or neither.")
    return as_name(attack, "attack"), as_count(attackers, "attackers")


def as_collection(values: Any, name: str) -> list[Any]:
    """Return the elements of a collection; one text is none, though Python takes it for its letters.

    Raises:
        ConfigError: the value is no collection.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"{name} expects a list, but got {kind_of(values)}. Put it into [...].")
    return list(values)


def listed(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return f"{names[0]!r} (and {len(names) - 1} more)" if len(names) > 1 else repr(names[0])


def needed_arguments(function: Any, *, by_name: bool = False) -> list[str]:
    """Return the arguments without a default that are given by position, or those that are given by name only.

    Raises:
        ValueError: that cannot be known, as of some built-in callables.
    """
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    kinds = (inspect.Parameter.KEYWORD_ONLY,) if by_name else positional
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.default is each.empty and each.kind in kinds]


def kind_of(value: Any) -> str:
    """Return what a value is, as its user would say it."""
    return f"the text {value!r}" if isinstance(value, str) else "None" if value is None else type(value).__name__
