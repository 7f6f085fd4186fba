"""From what was given in Python to a `RunConfig`: defaults or `config`, then `method`, then keyword options."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from pydantic import ValidationError

from nufed.common.config import RunConfig, Scalar, option_descriptions, to_kebab
from nufed.common.errors import ConfigError, nearest_match_hint
from nufed.common.methods import find_method, preset_notes
from nufed.common.settings import Settings
from nufed.library.arguments import as_name

MACHINE = tuple(name for name in Settings.model_fields if name not in ("given", "out"))
"""Options of the machine that are keyword options too; they never change the numbers."""

_FEDERATIONS_OWN = "data.num-clients"
"""Of the options whose field has this name, the one that is meant without a section."""

_BY_PARAMETER = {"data.source": "dataset", "model.name": "model"}


def split_machine(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (options of the run, options of the machine).

    Raises:
        ConfigError: the device does not exist here, or a value is out of range.
    """
    machine = {name: value for name, value in options.items() if name in MACHINE and value is not None}
    _check_machine(machine)
    if (device := machine.get("device")) is not None:
        _check_device(str(device))
    return {name: value for name, value in options.items() if name not in MACHINE}, machine


def run_config(
    config: RunConfig | None, method: str | None, options: Mapping[str, Any], defaults: Mapping[str, Scalar]
) -> RunConfig:
    """Return the run's options: of `defaults`, `config`, `method` and `options`, the later one wins.

    Args:
        config: None takes the defaults.
        method: name of a preset.
        options: field name -> value, e.g. `{"num_inner_steps": 3}`.
        defaults: flat key -> value of what follows from the dataset; `config` wins where it sets the option itself.

    Raises:
        ConfigError: an option is unknown or out of range.
    """
    return config_and_notes(config, method, options, defaults)[0]


def config_and_notes(
    config: RunConfig | None, method: str | None, options: Mapping[str, Any], defaults: Mapping[str, Scalar]
) -> tuple[RunConfig, list[str]]:
    """Return `run_config` of the same arguments, and what its user must be told of the preset's place in it."""
    base, typed = config or RunConfig(), keyed(options)
    below = {key: value for key, value in defaults.items() if key not in base.given()}
    preset = find_method(as_name(method, "method")).options() if method else {}
    resolved = base.updated({**below, **preset, **typed})
    return resolved, preset_notes(method, base.given(), resolved, typed=typed) if method else []


def keyed(options: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return flat keys (`method.num-inner-steps`) for field names (`num_inner_steps`, or `method__num_inner_steps`).

    Raises:
        ConfigError: there is no such option.
    """
    known = option_names()
    changes: dict[str, Scalar] = {}
    for name, value in options.items():
        key = known.get(name) or to_kebab(name.replace("__", "."))
        if parameter := _BY_PARAMETER.get({"source": "data.source"}.get(name, key)):
            raise ConfigError(f"{name} is given by {parameter}=. Use that one.")
        if name not in known and key not in known.values():
            raise ConfigError(f"Unknown option {name!r}.{_hint(name)}")
        changes[key] = _scalar(value)
    return changes


@cache
def option_names() -> dict[str, str]:
    """Return field name -> flat key of every option; a name that two sections have is the run's own or needs both."""
    names: dict[str, str] = {}
    keys = [key for key in option_descriptions() if key not in _BY_PARAMETER]
    for key in keys:
        field = key.rpartition(".")[2].replace("-", "_")
        names[key.replace(".", "__").replace("-", "_")] = key
        if key == _FEDERATIONS_OWN or sum(other.rpartition(".")[2] == key.rpartition(".")[2] for other in keys) == 1:
            names.setdefault(field, key)
    return names


def _hint(name: str) -> str:
    """Return the nearest option; a part of its name, as the command line's short flags are, is nearest of all."""
    known = {*(each for each in option_names() if "__" not in each), *MACHINE}
    if containing := sorted(each for each in known if name in each):
        return f" Did you mean {' or '.join(map(repr, containing[:4]))}? `nufed options` lists all."
    return f"{nearest_match_hint(name, known)} `nufed options` lists all."


def _scalar(value: Any) -> Any:
    """Return a value as the configuration takes it: lists for arrays, text for paths, plain numbers for NumPy's."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, list | tuple):
        return [_scalar(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if isinstance(value, np.generic) else value


def _check_machine(machine: Mapping[str, Any]) -> None:
    """Refuse what the environment would refuse, by the names that it is given by here."""
    try:
        Settings(**{name: str(value) for name, value in machine.items()})  # type: ignore[arg-type]  # as variables are
    except ValidationError as error:
        for problem in error.errors():
            if (name := str(problem["loc"][0])) in machine:
                said = problem["msg"][:1].lower() + problem["msg"][1:]
                raise ConfigError(f"{name}={machine[name]!r} is refused: {said}.") from error


def _check_device(name: str) -> None:
    import torch

    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    known = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if name not in known:
        raise ConfigError(f"device={name!r} is not on this machine. Choose one of: {', '.join(known)}.")
