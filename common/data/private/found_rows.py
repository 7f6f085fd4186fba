"""Rows of a client's own data to predict: read like those to train on, prepared as the model says, and not divided."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from nufed.common.config import DataConfig, RunConfig
from nufed.common.config.lists import write_names
from nufed.common.data.array_trees import map_arrays
from nufed.common.data.input_scaling import may_scale_inputs
from nufed.common.data.pool import Table
from nufed.common.data.private.load import (
    SLICE,
    Membership,
    preparation_policy,
    read_rows,
    slice_of_source,
    targets_in,
)
from nufed.common.data.private.preparation import Preparation, fit_preparation
from nufed.common.data.private.prepared import prepared_examples
from nufed.common.data.private.rows import PrivateRows, refusal
from nufed.common.data.private.spare import Way, settle_empty
from nufed.common.data.private.spec import PrivateSpec, parse_spec
from nufed.common.errors import ConfigError
from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.settings import Settings
from nufed.common.trees import one_tensor


@dataclass(frozen=True)
class FoundRows:
    """Examples to predict.

    Attributes:
        rows: as they were read, values to predict in their own unit.
        examples: as the model takes them, values to predict likewise.
        told: what was done with empty cells that the model has no rule for; empty without any.
    """

    rows: PrivateRows
    examples: Examples
    told: str = ""


def load_rows(  # noqa: PLR0913 - the last one by name
    spec_text: str,
    task: TaskInfo,
    config: RunConfig,
    settings: Settings,
    preparation: Preparation | None = None,
    *,
    empty: Way = "fill",
) -> FoundRows:
    """Return examples to predict, as they were read and as the model takes them; without labels, targets are empty.

    Args:
        spec_text: a SPEC; of a slice of a named source, its test split.
        task: what the model was trained for.
        config: of the run that the model came from.
        settings: where data sets are on this machine.
        preparation: of the personal model; None if it has none.
        empty: what is done with rows that have an empty cell which the preparation has no rule for.

    Raises:
        ConfigError: the spec is not one, or asks for another preparation.
        DataError: the data cannot be had, or are not what the model takes.
    """
    if match := SLICE.fullmatch(spec_text):
        return _found_slice(slice_of_source(Membership(spec_text), match, config, settings).data)
    spec = parse_spec(spec_text)
    _check_undivided(spec)
    if preparation:
        spec = _prepared_elsewhere(spec, preparation, config.data)
    rows = read_rows(spec, task, config.data, labelled=False)
    dtype = getattr(torch, config.model.dtype)
    if not rows.columns:
        targets = np.zeros(len(rows), np.int64) if rows.targets is None else rows.targets
        read = preparation.apply(rows.inputs) if preparation else rows.inputs
        return FoundRows(rows, Table(read, targets).examples(np.arange(len(rows)), task, dtype))
    preparation = preparation or _preparation_without_support(rows, spec, config.data)
    rows, preparation, told = settle_empty(rows, preparation, empty)
    examples = prepared_examples(rows, np.arange(len(rows)), preparation, task, dtype)
    return FoundRows(rows, targets_in(examples, dtype), told)


def _found_slice(data: ClientData) -> FoundRows:
    """Return the test split of a slice of a named source, values to predict in their own unit."""
    test, scaling = data.test, data.target_scaling
    if scaling:
        test = replace(test, targets=scaling.undo(one_tensor(test.targets, "targets")))
    inputs, targets = (map_arrays(lambda leaf: leaf.numpy(), tree) for tree in (test.inputs, test.targets))
    return FoundRows(PrivateRows(inputs, targets, np.arange(1, len(test) + 1)), test)


def _check_undivided(spec: PrivateSpec) -> None:
    """Refuse a test part beside examples of which none is trained on."""
    if "test" in spec.options:
        raise ConfigError("--data: test= divides examples to train on, but here none are. Leave it out.")


def _prepared_elsewhere(spec: PrivateSpec, preparation: Preparation, config: DataConfig) -> PrivateSpec:
    """Return the spec for reading alone: what is missing is filled in and scaled as the personal model says."""
    if typed := [name for name in ("missing", "indicator", "scale") if name in spec.options]:
        raise refusal(
            ConfigError,
            f"--data: {typed[0]}= contradicts the personal model, which brings its own preparation. Leave it out.",
        )
    if spec.kind not in ("csv", "parquet"):
        if may_scale_inputs(config):  # the model was made of arrays
            return spec
        raise refusal(ConfigError, "--data names no table, but the personal model was made of one. Name a table.")
    read = {"missing": "zero"}
    if preparation.indicated and not config.feature_names:
        read = {
            "missing": write_names(["zero", *(f"{name}:zero" for name in preparation.indicated)]),
            "indicator": "yes",
        }
    return PrivateSpec(spec.text, spec.kind, spec.argument, {**spec.options, **read})


def _preparation_without_support(rows: PrivateRows, spec: PrivateSpec, config: DataConfig) -> Preparation:
    policy = preparation_policy(spec, config)
    if policy.needs_support:
        raise refusal(
            ConfigError,
            "--data: missing=mean|median|mode and scale=local need this client's support data, which `nufed "
            "personalize` keeps with its model. Predict with a personal model.",
        )
    return fit_preparation(rows.columns, policy, rows.inputs, np.arange(0))
