"""How a client fares with few examples: it adapts to seeded parts of its support split, the smaller in the larger.

Every part is judged on the same test split. A scaling of values to predict that is the client's own is that of the part
alone; the preparation of a table's columns stays that of the whole support split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nufed.client.personalize import Curves, adaptation_curves
from nufed.client.workplace import Workplace
from nufed.common.data.few_examples import few_examples
from nufed.common.data.target_scaling import fit_target_scaling, rescaled, target_scale
from nufed.common.examples import ClientData
from nufed.common.message_schema import NUM_EXAMPLES, MetricValue
from nufed.common.shots import SHORT, shot_name
from nufed.common.trees import one_tensor

_TEST = "test-"


@dataclass(frozen=True)
class Shot:
    """A client with few examples.

    Attributes:
        size: k, examples asked for: of each class where there are classes, else in all.
        place: the client with as many support examples as it has of them, and without a validation split.
        is_short: whether it has fewer.
    """

    size: int
    place: Workplace
    is_short: bool

    def metrics(self, curves: Curves) -> dict[str, MetricValue]:
        """Return what the reply says of this shot, of the curves that were drawn for its place."""
        found: dict[str, MetricValue] = {NUM_EXAMPLES: len(self.place.data.support), SHORT: int(self.is_short)}
        found |= {name: curve for name, curve in curves.items() if name.startswith(_TEST)}
        return {shot_name(self.size, name): value for name, value in found.items()}


def shots_of(place: Workplace, sizes: Sequence[int]) -> list[Shot]:
    """Return the client with each number of examples."""
    shots = []
    for size in sizes:
        data, seed = place.data, place.config.seed
        support, is_short = few_examples(data.support, size, place.task, seed=seed, client_id=data.client_id)
        nothing = torch.zeros(0, dtype=torch.int64, device=support.device)
        few = replace(data, support=support, validation=data.validation.take(nothing))
        # What a client keeps between rounds was trained on all of its examples.
        shots.append(Shot(size, replace(place, data=_scaled_alone(few, place), kept=None), is_short))
    return shots


def shot_curves(place: Workplace, params: Mapping[str, Tensor], sizes: Sequence[int]) -> dict[str, MetricValue]:
    """Return what a reply says of each number of examples (nufed.common.shots)."""
    found: dict[str, MetricValue] = {}
    for shot in shots_of(place, sizes):
        found |= shot.metrics(adaptation_curves(shot.place, params))
    return found


def _scaled_alone(data: ClientData, place: Workplace) -> ClientData:
    """Return the client with values to predict scaled by its few examples, where the scaling is its own."""
    if data.target_scaling is None or target_scale(place.config.data, place.task) != "local":
        return data
    unscaled = data.target_scaling.undo(one_tensor(data.support.targets, "targets"))
    return rescaled(data, fit_target_scaling(unscaled.cpu().numpy()))
