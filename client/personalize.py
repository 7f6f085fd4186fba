"""Adaptation at test time: fine-tune the server's model on the support split, judge it on data it has not seen."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from nufed.client.workplace import Workplace
from nufed.common.config import EvaluationConfig, RunConfig
from nufed.common.examples import Batch, ClientData, Examples
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.meta.objective import fine_tune
from nufed.common.metrics.closing import Answers, closing_numbers
from nufed.common.metrics.judged import judged
from nufed.common.metrics.judging import Judging, compute_all, ignored_target, in_units, judging
from nufed.common.metrics.track import MetricCurves
from nufed.common.params import Params
from nufed.common.rng import derive_seed, numpy_generator
from nufed.common.task import answers

Curves = dict[str, Any]
"""Lists of S + 1 numbers, and single numbers, by the names that messages have for them."""

Split = Literal["test", "validation"]


def adaptation_curves(
    place: Workplace, params: Mapping[str, Tensor], *, all_metrics: bool = False, is_trained: bool = False
) -> Curves:
    """Return the loss and metrics after s = 0 … S steps from `params` (docs/concepts/evaluation.md).

    Args:
        place: the client.
        params: the server's model.
        all_metrics: report all of the run's metrics, and what they are compared with; else the primary one alone.
        is_trained: whether `params` are a model that the client has trained alone, where nothing is aggregated.

    Returns:
        `test-loss`, `test-<metric>` and, where there is a validation split, `validation-loss` and
        `validation-<metric>`: S+1 numbers each; with `all_metrics` what `closing_numbers` names beside them.
    """
    by, scaling = judging(place.config.evaluation, place.task), place.data.target_scaling
    computes = by.computes if all_metrics else by.on_the_way
    tracks: dict[Split, MetricCurves] = {}
    losses: dict[Split, list[Tensor]] = {}  # read at the end: to read a number waits for the device
    for name, examples in _held_out(place).items():
        if len(examples):
            targets = in_units(examples.targets, scaling)
            tracks[name], losses[name] = MetricCurves(computes, targets, ignored_target(place.task)), []
    said: dict[str, Any] = {}
    for step, point in enumerate(adapted_points(place, params, is_trained=is_trained)):
        for name, track in tracks.items():
            outputs, loss = _answers(place, point, name, step)
            losses[name].append(loss)
            track.add(in_units(outputs, scaling))
            if all_metrics and name == "test" and step == place.config.evaluation.primary_step:
                said = closing_numbers_of(place, by, outputs)
    curves: Curves = {f"{name}-loss": torch.stack(each).tolist() for name, each in losses.items()}
    for name, track in tracks.items():
        curves |= {f"{name}-{metric}": values for metric, values in track.curves().items()}
    return {**curves, **said}


def closing_numbers_of(place: Workplace, by: Judging, outputs: Tensor) -> dict[str, Any]:
    """Return what a client's test results after s* steps are compared with, from its outputs there."""
    seed = place.config.seed, place.data.client_id
    answered = Answers(place.task, outputs, place.data.test.targets, place.data.target_scaling, seed)
    counts = place.config.evaluation.report_counts
    return dict(closing_numbers(by, answered, place.data.support.targets, counts=counts))


def adapted_points(place: Workplace, params: Mapping[str, Tensor], *, is_trained: bool = False) -> Iterator[Params]:
    """Yield the model after s = 0 … S gradient steps on the support split, in evaluation mode.

    Plain steps, unless the method has others (common/meta/objective.py). Where nothing is aggregated, step 0 is the
    model that the client trained alone, which `is_trained` says `params` to be; where it keeps something between
    rounds, it starts with that.
    """
    evaluation, method = place.config.evaluation, place.config.method
    if is_alone(place.config) and not is_trained:
        params = trained_alone(place, params)
    step_size = evaluation.adapt_lr or method.inner_lr
    batches = (
        replace(batch, mask_seed=_draws_seed(place, "adapt", step))
        for step, batch in enumerate(adaptation_batches(place.data, evaluation, seed=place.config.seed))
    )
    return fine_tune(place.adaptation_loss, params, batches, step_size, method, kept=place.kept)


def judge_split(place: Workplace, point: Params, name: Split, step: int) -> dict[str, float]:
    """Return `loss` and all metrics of a model after so many steps, on one of a client's held-out splits."""
    outputs, mean = _answers(place, point, name, step)
    loss = float(mean)
    computes, scaling = judging(place.config.evaluation, place.task).computes, place.data.target_scaling
    if bool(outputs.isnan().any()):
        return {"loss": loss, **dict.fromkeys(computes, math.nan)}
    targets = in_units(_held_out(place)[name].targets, scaling)
    found = compute_all(computes, judged(in_units(outputs, scaling), targets, ignored_target(place.task)))
    return {"loss": loss, **{metric: float(value) for metric, value in found.items()}}


def _answers(place: Workplace, point: Params, name: Split, step: int) -> tuple[Tensor, Tensor]:
    batch = replace(_held_out(place)[name].as_batch(), mask_seed=_draws_seed(place, name, step))
    return answers(place.adaptation_loss, point, batch)


def _held_out(place: Workplace) -> dict[Split, Examples]:
    return {"test": place.data.test, "validation": place.data.validation}


def _draws_seed(place: Workplace, purpose: str, step: int) -> int | None:
    """Return the seed of what a model draws in evaluation mode; None for one that draws nothing then."""
    if place.adaptation_loss.traits.draws == "nothing":
        return None
    return derive_seed(place.config.seed, "evaluation", place.data.client_id, purpose, step)


def is_alone(config: RunConfig) -> bool:
    """Return whether nothing is aggregated, so that clients train alone before they are judged."""
    return config.federation.training == "local"


def rounds_alone(config: RunConfig) -> range:
    """Return the numbers of the rounds that each client trains where nothing is aggregated."""
    federation = config.federation
    return range(1, 1 + round(federation.participation_fraction * federation.num_rounds))


def trained_alone(place: Workplace, params: Mapping[str, Tensor]) -> Params:
    """Return the model after the local steps that a client makes in a federated run, nobody else taking part.

    That is r K rounds (to the nearest whole one) of τ steps, what a participating client is asked for on average; new
    clients make as many, so that both groups are treated alike.
    """
    point = dict(params)
    for number in rounds_alone(place.config):
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
        yield data.support.take(torch.from_numpy(rows).to(data.support.device)).as_batch()
