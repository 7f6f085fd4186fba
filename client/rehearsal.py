"""Everything that a deployed client does before its first step, done without a server: what is wrong is found here.

The same functions run as at a server's first message: data are read and compared with the run, the model is built and
examined on the client's examples, and one loss is computed. What was found is for the eyes of whoever holds the data:
nothing of it is sent anywhere.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from nufed.client.client_state import check_state_file
from nufed.client.personal_model import personal_path
from nufed.client.workplace import Workplace, membership, workplace_of
from nufed.common.config import RunConfig, Scalar
from nufed.common.data.private.load import is_slice, load_own, load_private
from nufed.common.data.private.rows import PrivateRows
from nufed.common.data.private.task import value_slices
from nufed.common.errors import ModelError
from nufed.common.examples import Examples
from nufed.common.params import Params, model_params
from nufed.common.settings import Settings
from nufed.common.wire import ClientDescription

SPLITS = ("support", "validation", "test")


@dataclass(frozen=True)
class InputColumn:
    """A column of a client's table.

    Attributes:
        name: as in the file's header.
        missing: share of the rows that have no value in it.
    """

    name: str
    missing: float


@dataclass(frozen=True)
class Findings:
    """What was found of a client's data and of the run's model on them.

    Attributes:
        client_id: stable name.
        group: `participating` or `new`.
        rows: examples in all splits.
        splits: examples by split.
        classes: class name -> examples by split; empty where there are none.
        groups: how many groups of examples stay together; None where nobody said which belong together.
        missing: share of cells without a value, before anything is filled in; None where there are no columns.
        columns: those of a table.
        task: kind of the run's task.
        model: name of the run's model.
        parameters: numbers that the model has.
        loss: of the model before training, mean over the support split.
    """

    client_id: str
    group: str
    rows: int
    splits: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    groups: int | None
    missing: float | None
    columns: tuple[InputColumn, ...]
    task: str
    model: str
    parameters: int
    loss: float

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def rehearse(config: RunConfig, node_config: Mapping[str, Scalar], settings: Settings) -> Findings:
    """Return what a client finds at a server's first message.

    Args:
        config: the run's configuration.
        node_config: the client's, as `nufed client` makes it.
        settings: of this machine.

    Raises:
        ConfigError: the run's or the client's options are wrong.
        DataError: the client's data cannot be had, or are not what the run expects.
        ModelError: the model cannot be built, cannot be trained on these examples, or has no finite loss on them.
        WireError: no server would take a client of that name.
    """
    member, rows = membership(node_config), None
    if is_slice(member.spec):
        client = load_private(member, config, settings)
    else:
        client, rows = load_own(member, config, settings)
    place = workplace_of(client, config, node_config, settings)
    sizes = {name: len(split) for name, split in _splits(place).items()}
    support, validation, test = sizes.values()
    ClientDescription(place.data.client_id, place.data.group, support, validation, test).to_records()
    personal_path(node_config)
    check_state_file(place, node_config)
    params = model_params(place.model)
    loss = _loss(place, params)
    columns = _columns(rows)
    return Findings(
        client_id=place.data.client_id,
        group=place.data.group,
        rows=sum(sizes.values()),
        splits=sizes,
        classes=_classes(place),
        groups=_num_groups(rows),
        missing=float(np.mean([column.missing for column in columns])) if columns else None,
        columns=columns,
        task=place.task.kind,
        model=config.model.name,
        parameters=sum(tensor.numel() for tensor in params.values()),
        loss=loss,
    )


def _splits(place: Workplace) -> dict[str, Examples]:
    return {name: getattr(place.data, name) for name in SPLITS}


def _loss(place: Workplace, params: Params) -> float:
    """Return the loss of the untrained model over the support split.

    Raises:
        ModelError: it is not finite, so that no step could be made.
    """
    with torch.no_grad():
        loss = float(place.adaptation_loss(params, place.data.support.as_batch()))
    if not math.isfinite(loss):
        raise ModelError(
            f"expected a finite loss of the untrained model {place.config.model.name!r} on this client's examples, but "
            f"got {loss}; scale the inputs (scale=local, or the run's data.feature-means and data.feature-scales), or "
            "choose another model"
        )
    return loss


def _classes(place: Workplace) -> dict[str, dict[str, int]]:
    """Return how many examples each class has in each split."""
    names = place.task.class_names
    counts = {}
    for split, examples in _splits(place).items():
        targets = examples.targets
        if not names or not isinstance(targets, torch.Tensor) or targets.dim() != 1 or targets.is_floating_point():
            return {}
        counts[split] = Counter(targets.tolist())
    return {name: {split: counts[split][code] for split in counts} for code, name in enumerate(names)}


def _num_groups(rows: PrivateRows | None) -> int | None:
    return None if rows is None or rows.groups is None else len(np.unique(rows.groups.codes))


def _columns(rows: PrivateRows | None) -> tuple[InputColumn, ...]:
    """Return the columns with the share of rows that lack each."""
    if rows is None or not rows.columns:
        return ()
    return tuple(
        InputColumn(column.name, float(np.isnan(rows.inputs[:, part.start]).mean()))
        for column, part in zip(rows.columns, value_slices(rows.columns), strict=True)
    )
