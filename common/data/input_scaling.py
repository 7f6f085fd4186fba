"""Inputs of arrays in raw units (a table's numbers in npz, python or Python), in a size that a model trains on.

Tables in csv and parquet files have `scale=` for it, and images are scaled already. `data.input-scale` says what is
done with arrays of D numbers for each example:

none    nothing is changed
run     x ↦ (x - mean) / deviation, of the participating clients' support splits together
auto    `run` where an input has a root mean square above `LARGE`, so that a default step size would diverge, else none
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from nufed.common.config import DataConfig
from nufed.common.data.pool import Array, DealtFederation
from nufed.common.data.private.preparation import Preparation
from nufed.common.data.target_scaling import in_precision, mean_and_scale
from nufed.common.errors import ConfigError
from nufed.common.examples import ClientData, Examples
from nufed.common.given import is_given
from nufed.common.trees import one_tensor

LARGE = 10.0
"""Root mean square of an input above which `auto` scales; standardized inputs have 1, pixels at most 1."""


def scale_inputs(dealt: DealtFederation, config: DataConfig) -> DealtFederation:
    """Return the federation with every client's inputs scaled as `data.input-scale` says.

    Raises:
        ConfigError: `run` is asked for inputs that are no numbers in one row.
    """
    is_row = len(dealt.task.input_shape) == 1
    if config.input_scale == "run" and not is_row:
        raise ConfigError(
            f"data.input-scale=run is for examples that are a row of numbers, but {config.source} has inputs of shape "
            f"{list(dealt.task.input_shape)}. Leave it out."
        )
    if not is_row or not may_scale_inputs(config):
        return dealt
    fitted = _fitted(dealt, config)

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        preparation = fitted()
        if preparation is None:
            return dealt.make_client(partition_id, dtype)

        def change(examples: Examples) -> Examples:
            return replace(examples, inputs=torch.from_numpy(preparation.apply(one_tensor(examples.inputs).numpy())))

        return in_precision(dealt.make_client(partition_id, torch.float64).with_splits(change), dtype)

    return replace(dealt, make_client=make_client, preparation=fitted)


def may_scale_inputs(config: DataConfig) -> bool:
    """Return whether inputs are scaled if their shape and size ask for it."""
    of_arrays = config.source.startswith(("npz:", "python:")) or is_given(config.source)
    return config.input_scale == "run" or (config.input_scale == "auto" and of_arrays)


def _fitted(dealt: DealtFederation, config: DataConfig) -> Callable[[], Preparation | None]:
    @cache
    def fit() -> Preparation | None:
        if config.input_scale == "auto" and dealt.largest_input() <= LARGE:
            return None  # as below, without making all clients
        clients = (dealt.make_client(index, torch.float64) for index in dealt.pooled(config))
        inputs = [one_tensor(client.support.inputs) for client in clients]
        if not all(rows.is_floating_point() for rows in inputs):
            return None
        values: Array = torch.cat(inputs).numpy()
        largest = np.maximum(np.abs(values).max(0), 1.0)
        if config.input_scale == "auto" and not (np.sqrt(((values / largest) ** 2).mean(0)) * largest > LARGE).any():
            return None
        shift, scale = mean_and_scale(values)
        return Preparation((float("nan"),) * values.shape[1], tuple(shift.tolist()), tuple(scale.tolist()))

    return fit
