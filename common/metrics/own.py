"""Metrics of the user's own: `module:function` or given in Python, from outputs and targets to a number."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nufed.common.errors import ConfigError, ModelError
from nufed.common.given import find_given, is_given
from nufed.common.metric_looks import LOSS, Look
from nufed.common.metrics.judged import Judged
from nufed.common.metrics.registry import METRICS, Compute
from nufed.common.user_code import guarded, load_function

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40


def own_metric(reference: str | Callable[..., Any], option: str) -> tuple[str, Look, Compute]:
    """Return the name, look and computation of a metric of one's own.

    The function takes the outputs [N, ...] (of regression in the targets' units) and the targets of a client's
    examples, and returns a float; NaN where it is undefined. Where less is better it has the attribute
    `lower_is_better = True`.

    Args:
        reference: `module:function`, `given:FINGERPRINT` or the function; the metric is called like it, with - for _.
        option: where it was given, for messages.

    Raises:
        ConfigError: there is no such function, or its name is taken or cannot stand in a table.
    """
    if isinstance(reference, str) and not is_given(reference):
        what = f"{option}={reference!r}"
        function, called = load_function(reference, option, ModelError), reference.partition(":")[2]
    else:
        found = find_given(reference, ConfigError, "metric") if isinstance(reference, str) else reference
        called = _called(found)
        what = f"the metric {called!r}"
        function = guarded(found, what, ModelError, Path.cwd())
    name = called.replace("_", "-")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST or name in METRICS or name == LOSS:
        why = "is taken" if name in METRICS or name == LOSS else f"is no name of at most {_LONGEST} small letters"
        raise ConfigError(f"{what} would be the metric {name!r}, which {why}. Rename the function.")
    is_error = bool(getattr(function, "lower_is_better", False))
    look = Look("lower" if is_error else "higher", may_be_undefined=True)
    return name, look, _computation(function, what)


def _called(function: Any) -> str:
    """Return the name of a function, or of what it is bound from, or of an object's class."""
    if isinstance(function, functools.partial):
        return _called(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def _computation(function: Callable[[Tensor, Any], Any], what: str) -> Compute:
    def compute(of: Judged) -> Tensor:
        if of.leading:
            each = [
                compute(Judged(of.outputs[number], _row(of.targets, number), of.counted[number], of.ignored))
                for number in range(len(of.counted))
            ]
            return torch.stack(each)
        if bool(of.outputs.isnan().any()):  # which many a function takes for an error
            return torch.tensor(torch.nan, dtype=torch.float64, device=of.counted.device)
        rows = of.counted.nonzero().squeeze(1)
        whole = len(rows) == len(of.counted)
        outputs, targets = (of.outputs, of.targets) if whole else (of.outputs[rows], of.targets[rows])
        value = function(outputs, targets)
        try:
            return torch.tensor(float(value), dtype=torch.float64, device=of.counted.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"expected {what} to return a number, but it returned {type(value).__name__}; return a float"
            ) from error

    return compute


def _row(targets: Any, number: int) -> Any:
    return targets[number] if isinstance(targets, Tensor) else targets
