"""What fine-tuning costs in global skill: a client's model, as it adapts, judged on everybody's test examples.

A model that a client has fine-tuned does better on its own data and, as a rule, worse on all others'. How much worse is
seen only where the others' test examples are at hand: in a simulation. The examples are a seeded sample of the
participating clients' test splits, the same for every client and every step.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from nufed.client.personalize import adaptation_curves
from nufed.client.workplace import Workplace
from nufed.common.config import DataConfig
from nufed.common.data import load_federation
from nufed.common.examples import Examples
from nufed.common.message_schema import MetricValue
from nufed.common.metric_looks import global_name
from nufed.common.metrics.judging import judging
from nufed.common.models import DTYPES
from nufed.common.rng import numpy_generator
from nufed.common.settings import Settings, process_settings
from nufed.common.trees import cat, one_tensor


def global_curves(
    place: Workplace, params: Mapping[str, Tensor], *, is_trained: bool = False
) -> dict[str, MetricValue]:
    """Return `test-global-<primary metric>`, S+1 numbers, on everybody's test examples; nothing where it is not asked.

    Args:
        place: the client.
        params: the server's model.
        is_trained: whether it is a model that the client has trained alone, where nothing is aggregated.
    """
    evaluation, data = place.config.evaluation, place.data
    if not evaluation.global_examples:
        return {}
    own = (place.config.seed, DTYPES[place.config.model.dtype], evaluation.global_examples)
    shared = everybodys_examples(place.config.data, process_settings(), *own).to(data.support.device)
    if data.target_scaling is not None:
        scaled = data.target_scaling.apply(one_tensor(shared.targets, "targets"))
        shared = replace(shared, targets=scaled.to(one_tensor(data.support.targets, "targets").dtype))
    nothing = torch.zeros(0, dtype=torch.int64, device=data.support.device)
    everywhere = replace(data, test=shared, validation=data.validation.take(nothing))
    primary = judging(evaluation, place.task).primary
    curve = adaptation_curves(replace(place, data=everywhere), params, is_trained=is_trained)[f"test-{primary}"]
    return {f"test-{global_name(primary)}": [value if math.isfinite(value) else math.nan for value in curve]}


@lru_cache(maxsize=2)
def everybodys_examples(config: DataConfig, settings: Settings, seed: int, dtype: torch.dtype, number: int) -> Examples:
    """Return so many test examples of participating clients, or all if there are fewer; targets in their own units.

    As many of each client as of any other, to one, as far as it has them; of more clients than examples, a part.
    """
    federation = load_federation(config, seed=seed, dtype=dtype, settings=settings)
    rng = numpy_generator(seed, "evaluation", "global")
    chosen = rng.permutation(config.num_clients)[:number].tolist()
    parts, left = [], number
    for position, index in enumerate(sorted(chosen)):
        client = federation.clients[index]
        size = min(len(client.test), math.ceil(left / (len(chosen) - position)))
        rows = numpy_generator(seed, "evaluation", "global", client.client_id).permutation(len(client.test))[:size]
        part = client.test.take(torch.from_numpy(rows))
        if client.target_scaling is not None:
            part = replace(part, targets=client.target_scaling.undo(one_tensor(part.targets, "targets")))
        parts.append(part)
        left -= size
    return Examples(cat([part.inputs for part in parts]), cat([part.targets for part in parts]))
