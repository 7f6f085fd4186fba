"""Adaptation at test time: fine-tune the server's model on the support split, judge it on data it has not seen."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from nufed.client.workplace import Workplace
from nufed.common.config import EvaluationConfig
from nufed.common.examples import Batch, ClientData
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.objective import fine_tune
from nufed.common.params import Params
from nufed.common.rng import numpy_generator
from nufed.common.task import judged_by_all

Curves = dict[str, list[float]]


def adaptation_curves(place: Workplace, params: Mapping[str, Tensor]) -> Curves:
    """Return losses and accuracies after s = 0 … S steps from `params` (docs/concepts/evaluation.md).

    Returns:
        `test-loss`, `test-accuracy` and, where there is a validation split, `validation-loss` and
        `validation-accuracy`: S+1 numbers each, means over examples. Accuracies are absent for regression; further
        metrics of `nufed.common.metrics` are named likewise.
    """
    judged = {"test": place.data.test, "validation": place.data.validation}
    judged = {name: examples for name, examples in judged.items() if len(examples)}
    curves: Curves = {}
    for point in adapted_points(place, params):
        for name, examples in judged.items():
            for measure, value in judged_by_all(place.model, place.task, point, examples.as_batch()).items():
                curves.setdefault(f"{name}-{measure}", []).append(value)
    return curves


def adapted_points(place: Workplace, params: Mapping[str, Tensor]) -> Iterator[Params]:
    """Yield the model after s = 0 … S gradient steps on the support split, in evaluation mode.

    Plain steps, unless the method has others (common/meta/objective.py). Where nothing is aggregated, step 0 is the
    model that the client trained alone.
    """
    evaluation, method = place.config.evaluation, place.config.method
    if place.config.federation.training == "local":
        params = trained_alone(place, params)
    step_size = evaluation.adapt_lr or method.inner_lr
    batches = adaptation_batches(place.data, evaluation, seed=place.config.seed)
    return fine_tune(place.adaptation_loss, params, batches, step_size, method)


def trained_alone(place: Workplace, params: Mapping[str, Tensor]) -> Params:
    """Return the model after the local steps that a client makes in a federated run, nobody else taking part.

    That is r K rounds (to the nearest whole one) of τ steps, what a participating client is asked for on average; new
    clients make as many, so that both groups are treated alike.
    """
    federation, point = place.config.federation, dict(params)
    for number in range(1, 1 + round(federation.participation_fraction * federation.num_rounds)):
        stream = Stream(place.config.seed, place.data.client_id, number, place.masks)
        update = local_update(place.training_loss, point, place.data.support, place.config.method, stream)
        point = update.params
    return point


def adaptation_batches(data: ClientData, evaluation: EvaluationConfig, *, seed: int) -> Iterator[Batch]:
    """Yield S batches of the support split: all of it, or seeded draws that depend on the client alone."""
    if evaluation.adapt_batch_size == 0:
        batch = data.support.as_batch()
        yield from (batch for _ in range(evaluation.num_adapt_steps))
        return
    generator = numpy_generator(seed, "adapt", data.client_id)
    size, available = evaluation.adapt_batch_size, len(data.support)
    for _ in range(evaluation.num_adapt_steps):
        rows = generator.choice(available, size, replace=size > available, shuffle=False)
        yield data.support.take(torch.from_numpy(rows).to(data.support.targets.device)).as_batch()
