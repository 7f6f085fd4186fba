"""Values to predict, in units that a model of any start trains on, and back: y ↦ (y - mean) / scale, one pair each.

A step size that fits values around 1 diverges on values around 50: the gradient grows with the values and the loss
with their squares. `data.target-scale` says where mean and scale come from:

none    nothing is changed
run     one pair for all clients: `data.target-means` and `data.target-scales`, or, where the process has all clients'
        examples (a simulation), those of the participating clients' support splits together
local   each client's own support split; kept with its personal model, and told to nobody
auto    run where the run gives them, local for clients' own data, run for arrays and tables of a simulation, and none
        for the sources that come along, whose values are of that size

Losses are those of the scaled values, which are trained on; metrics and predictions are in the unit of the data.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nufed.common.config import DataConfig
from nufed.common.data.cast import cast_tree, input_name, target_name
from nufed.common.data.declared_numbers import check_scales, read_numbers
from nufed.common.data.pool import Array, DealtFederation
from nufed.common.data.private.task import PRIVATE
from nufed.common.errors import ConfigError
from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.statistics import NOISE
from nufed.common.trees import one_tensor

UNIT_SIZED = ("sinusoid", "quadratic")
"""Sources whose values to predict are around 1, and in no unit."""


@dataclass(frozen=True)
class TargetScaling:
    """y ↦ (y - mean) / scale, for each of K values to predict.

    Attributes:
        means: [K], in the unit of the values.
        scales: [K], above 0, in the same unit.
    """

    means: tuple[float, ...]
    scales: tuple[float, ...]

    def apply(self, targets: Tensor) -> Tensor:
        """Return scaled values, float64 [N, K]."""
        return (targets.double() - self._row(self.means, targets)) / self._row(self.scales, targets)

    def undo(self, values: Tensor) -> Tensor:
        """Return values in their own unit, float64 [..., K]: of targets that were scaled, or of a model's outputs."""
        return values.double() * self._row(self.scales, values) + self._row(self.means, values)

    def to_json(self) -> dict[str, list[float]]:
        """Return JSON values."""
        return {"means": list(self.means), "scales": list(self.scales)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> "TargetScaling | None":
        """Return what `to_json` wrote; None of None.

        Raises:
            ValueError: the values are not finite pairs with scales above 0.
            KeyError: one of the two is missing.
        """
        if values is None:
            return None
        means, scales = (tuple(float(value) for value in values[name]) for name in ("means", "scales"))
        if len(means) != len(scales) or not all(map(math.isfinite, (*means, *scales))) or min(scales, default=0) <= 0:
            raise ValueError("target_scaling needs as many finite means as scales above 0")
        return cls(means, scales)

    def _row(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=like.device)


def fit_target_scaling(targets: Array) -> TargetScaling:
    """Return mean and standard deviation of each of K values.

    A value that does not vary beyond float32's rounding, or that there is one example of, has the scale 1, or that
    rounding where it is larger: nothing is known of how others will differ from it.

    Args:
        targets: [N, K], finite, N at least 1.
    """
    means, scales = mean_and_scale(targets)
    return TargetScaling(tuple(means.tolist()), tuple(scales.tolist()))


def mean_and_scale(values: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of each column, finite also where the squares of its values are not.

    The scale of a column that does not vary beyond float32's rounding is 1, or that rounding where it is larger.

    Args:
        values: [N, K], finite, N at least 1.
    """
    wide = np.asarray(values, dtype=np.float64)
    largest = np.abs(wide).max(0)
    unit = np.where(largest > 0, largest, 1.0)
    means, deviations = (wide / unit).mean(0) * unit, (wide / unit).std(0) * unit
    return means, np.where(deviations > NOISE * largest, deviations, np.maximum(1.0, NOISE * largest))


def target_scale(config: DataConfig, task: TaskInfo) -> Literal["none", "run", "local"]:
    """Return how the values to predict are scaled, `auto` resolved.

    Raises:
        ConfigError: the task has no values to predict, or a private federation gives no means and scales for `run`.
    """
    chosen, declared = config.target_scale, declared_target_scaling(config)
    if task.kind != "regression":
        if declared or chosen in ("run", "local"):
            key = "target-means" if declared else "target-scale"
            raise ConfigError(
                f"data.{key} is for values to predict, but the task is {task.kind}. Leave it out, or set "
                "data.task=regression."
            )
        return "none"
    if declared and len(declared.means) != task.num_outputs:
        raise ConfigError(
            f"expected a mean and a scale for each of the {task.num_outputs} values to predict, but got "
            f"{len(declared.means)} in data.target-means. Give one for each."
        )
    if declared and chosen == "none":
        raise ConfigError("data.target-scale=none contradicts data.target-means. Leave one of them out.")
    if chosen == "run" and config.source == PRIVATE and not declared:
        raise ConfigError(
            "data.target-scale=run needs data.target-means and data.target-scales where data.source=private, because "
            "the server has no data. Give both, or set data.target-scale=local."
        )
    if chosen != "auto":
        return chosen
    if declared:
        return "run"
    if config.source == PRIVATE:
        return "local"
    return "none" if config.source in UNIT_SIZED else "run"


def declared_target_scaling(config: DataConfig) -> TargetScaling | None:
    """Return what `data.target-means` and `data.target-scales` say; None where they are empty.

    Raises:
        ConfigError: they are no finite numbers, not as many as each other, or a scale is not above 0.
    """
    if not config.target_means and not config.target_scales:
        return None
    means = read_numbers(config.target_means, "data.target-means")
    scales = read_numbers(config.target_scales, "data.target-scales")
    if len(means) != len(scales):
        raise ConfigError(
            f"expected as many numbers in data.target-means as in data.target-scales, but got {len(means)} and "
            f"{len(scales)}. Give both for each value to predict."
        )
    check_scales(means, scales, f"data.target-scales={config.target_scales!r}", "value")
    return TargetScaling(means, scales)


def scale_targets(dealt: DealtFederation, config: DataConfig) -> DealtFederation:
    """Return the federation with every client's values to predict scaled as the options say.

    Raises:
        ConfigError: as `target_scale`.
    """
    way = target_scale(config, dealt.task)
    if way == "none":
        return dealt

    @cache
    def of_the_run() -> TargetScaling:
        return declared_target_scaling(config) or _pooled(
            dealt.make_client(index, torch.float64) for index in dealt.pooled(config)
        )

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        client = dealt.make_client(partition_id, torch.float64)
        scaling = (
            of_the_run() if way == "run" else fit_target_scaling(one_tensor(client.support.targets, "targets").numpy())
        )
        return in_precision(scaled_client(client, scaling), dtype)

    return replace(dealt, make_client=make_client, target_scaling=of_the_run if way == "run" else None)


def own_target_scaling(client: ClientData, task: TaskInfo, config: DataConfig) -> TargetScaling | None:
    """Return the scaling of a client who knows no other's examples; None where nothing is scaled.

    Args:
        client: its values to predict unscaled.
        task: of the run.
        config: of the run.

    Raises:
        ConfigError: as `target_scale`.
    """
    way = target_scale(config, task)
    if way == "none":
        return None
    return (way == "run" and declared_target_scaling(config)) or fit_target_scaling(
        one_tensor(client.support.targets, "targets").numpy()
    )


def scaled_client(client: ClientData, scaling: TargetScaling) -> ClientData:
    """Return a client with scaled values to predict, in float64.

    Args:
        client: values to predict in float64, unscaled: differences that float32 would lose are kept by the scaling.
        scaling: of its values to predict.
    """
    scaled = client.with_splits(lambda own: replace(own, targets=scaling.apply(one_tensor(own.targets, "targets"))))
    return replace(scaled, target_scaling=scaling)


def in_precision(client: ClientData, dtype: torch.dtype) -> ClientData:
    """Return a client with all its real numbers in the run's precision.

    Raises:
        DataError: a number is beyond the range of `dtype`.
    """

    def change(examples: Examples) -> Examples:
        inputs, targets = cast_tree(examples.inputs, dtype, input_name), cast_tree(examples.targets, dtype, target_name)
        return replace(examples, inputs=inputs, targets=targets)

    return client.with_splits(change)


def rescaled(client: ClientData, scaling: TargetScaling) -> ClientData:
    """Return a client whose values to predict were scaled already, scaled in another way."""
    earlier = client.target_scaling
    if earlier is None:
        return client

    def change(examples: Examples) -> Examples:
        targets = one_tensor(examples.targets, "targets")
        return replace(examples, targets=scaling.apply(earlier.undo(targets)).to(targets.dtype))

    return replace(client.with_splits(change), target_scaling=scaling)


def _pooled(clients: Iterable[ClientData]) -> TargetScaling:
    return fit_target_scaling(
        np.concatenate([one_tensor(client.support.targets, "targets").numpy() for client in clients])
    )
