"""Several clients of this process trained or evaluated as one batched computation; their replies are each their own.

Who cannot be batched is handed back, to be run alone: models that draw random numbers, which come from generators that
one client seeds; models that the kernels do not know; methods with options that they do not know
(`nufed.common.method_rules.sequential_training`); and all clients of a computation that failed, so that an error is
its culprit's and nobody else's.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch

from nufed.client.global_skill import global_curves
from nufed.client.personalize import is_alone, rounds_alone
from nufed.client.shots import shots_of
from nufed.client.train_reply import train_reply
from nufed.client.workplace import Workplace
from nufed.common.errors import ModelError
from nufed.common.message_schema import MetricValue
from nufed.common.meta.cohort import stacked_update
from nufed.common.meta.cohort_batches import Trainee, batch_sizes
from nufed.common.meta.cohort_curves import Scratch
from nufed.common.meta.cohort_state import stacked_update_with_state
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.local_update import Stream
from nufed.common.meta.meta_sgd import split_step_sizes
from nufed.common.method_rules import sequential_evaluation, sequential_training
from nufed.common.params import Params, num_bytes
from nufed.common.steps.cohort_dense import DenseKernel
from nufed.common.steps.cohort_kernel import CohortKernel, apart, stack_params
from nufed.common.steps.cohort_module import ModuleKernel, maps_rightly
from nufed.common.steps.dense_layers import dense_layers
from nufed.common.trees import num_bytes as tree_bytes
from nufed.common.wire import EvaluateReply, TrainReply
from nufed.deploy.simulation.cohort_curves import cohort_curves

MEMORY = {"cpu": 64 * 2**20, "cuda": 4 * 2**30}
"""Bytes that the inputs, models and graphs of one batched computation may take, by type of device."""

SMALLEST_SHARE = 0.9
"""A client is batched with larger ones if it has at least this share of the largest one's examples."""

DIFFERS = "some layer's gradients are others when they are mapped over clients (an embedding with padding_idx, a hook)"

_log = logging.getLogger("nufed.cohort")


@dataclass(frozen=True)
class Assignment:
    """What one client is asked.

    Attributes:
        number: by which the answer is known.
        place: the client.
        params: the server's model, on the client's device.
        round: k.
        shots: numbers of support examples to draw a further curve for.
        all_metrics: of an evaluation, whether it is to report all of the run's metrics.
    """

    number: int
    place: Workplace
    params: Params
    round: int
    shots: tuple[int, ...] = ()
    all_metrics: bool = False


@dataclass(frozen=True)
class Answer:
    """What a client answers.

    Attributes:
        number: of the assignment.
        reply: None if it is to be run alone.
        kept: what it keeps for its next round; None where it keeps nothing new.
        round: k.
    """

    number: int
    reply: TrainReply | EvaluateReply | None
    kept: Params | None = None
    round: int = 0


Chunk = Sequence[Assignment]
Compute = Callable[[Chunk], Sequence[Answer]]


class Cohort:
    """Runs clients together; holds why it did not, so that each reason is logged and each model is tried once."""

    def __init__(self) -> None:
        """Start with nothing logged."""
        self._said: set[str] = set()
        self._problems: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()

    def train(self, assignments: Chunk) -> Iterator[Answer]:
        """Yield each client's answer, one batched computation after another."""
        for group in _by_model(assignments):
            place = group[0].place
            if unknown := sequential_training(place.config):
                yield from self._alone(group, f"{', '.join(unknown)} cannot be computed for several at once")
                continue
            if (kernel := training_kernel(place)) is None:
                why = "draws random numbers" if place.masks else "would be slower together on this device"
                yield from self._alone(group, f"{type(place.model).__name__} {why}")
                continue
            if isinstance(kernel, ModuleKernel) and (problem := self._problem_of_mapping(group[0])):
                yield from self._alone(group, problem)
                continue
            if caution := find_estimator(place.config.method.estimator).caution:
                caution(place.training_loss, place.config.method)
            for chunk in training_chunks(kernel, group):
                yield from self._together(_train_with(kernel), chunk)

    def evaluate(self, assignments: Chunk) -> Iterator[Answer]:
        """Yield each client's answer, one batched computation after another."""
        for group in _by_model(assignments):
            place = group[0].place
            if not place.shown.evaluation:  # so that there is nothing to compute
                yield from (Answer(each.number, None) for each in group)
                continue
            if unknown := sequential_evaluation(place.config):
                yield from self._alone(group, f"{', '.join(unknown)} cannot be computed for several at once")
                continue
            if (layers := dense_layers(place.model, place.task)) is None:
                yield from self._alone(group, f"{type(place.model).__name__} is not made of linear layers alone")
                continue
            compute = _evaluate_with(DenseKernel(layers, place.task))
            for chunk in evaluation_chunks([each for each in group if _can_be_judged(each)]):
                yield from self._together(compute, chunk)
            yield from (Answer(each.number, None) for each in group if not _can_be_judged(each))

    def _problem_of_mapping(self, assignment: Assignment) -> str:
        """Return why a model's loss cannot be mapped over clients; empty if it can. Each model is tried once."""
        place, method = assignment.place, assignment.place.config.method
        model = split_step_sizes(assignment.params)[0]
        if place.model not in self._problems:
            support = place.data.support
            batch = support.take(torch.arange(min(4, len(support)), device=support.device)).as_batch()
            try:
                twice = find_estimator(method.estimator).differentiates_twice and method.num_inner_steps > 0
                problem = "" if maps_rightly(place.training_loss, model, batch, curvature=twice) else DIFFERS
            except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError, ModelError) as error:
                problem = f"the batched computation failed ({error})"
            self._problems[place.model] = problem
        return self._problems[place.model]

    def _together(self, compute: Compute, chunk: Chunk) -> Iterator[Answer]:
        try:
            answers = compute(chunk)
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError, ModelError) as error:
            yield from self._alone(chunk, f"the batched computation failed ({error})")
            return
        yield from answers

    def _alone(self, group: Chunk, reason: str) -> Iterator[Answer]:
        if reason not in self._said:
            self._said.add(reason)
            _log.warning("Clients run one at a time: %s.", reason)
        yield from (Answer(assignment.number, None) for assignment in group)


def training_kernel(place: Workplace) -> CohortKernel | None:
    """Return what computes several such clients' losses at once, or None where that is impossible or slower."""
    if place.masks:
        return None
    if layers := dense_layers(place.model, place.task):
        return DenseKernel(layers, place.task)
    return ModuleKernel(place.training_loss) if place.data.support.device.type == "cuda" else None


def training_chunks(kernel: CohortKernel, group: Chunk) -> list[list[Assignment]]:
    """Return the group in parts that fit the memory and are alike enough in their batch sizes to be batched."""
    method = group[0].place.config.method
    sizes = {each.number: batch_sizes(_trainee(each), method) for each in group}
    models, example = num_bytes(group[0].params) * (method.num_inner_steps + 5), _example_bytes(group)

    def is_alike(largest: Assignment, other: Assignment) -> bool:
        ours, theirs = sizes[largest.number], sizes[other.number]
        return ours == theirs or (kernel.takes_padding and sum(theirs) >= SMALLEST_SHARE * sum(ours))

    ordered = sorted(group, key=lambda each: (-sum(sizes[each.number]), sizes[each.number]))
    return _chunks(ordered, is_alike, lambda each: models + 2 * example * sum(sizes[each.number]))


def evaluation_chunks(group: Chunk) -> list[list[Assignment]]:
    """Return the group in parts that fit the memory and whose clients have about as many examples each."""
    if not group:
        return []
    sizes = {each.number: _num_examples(each.place) for each in group}
    models, example = 4 * num_bytes(group[0].params), _example_bytes(group)
    return _chunks(
        sorted(group, key=lambda each: -sizes[each.number]),
        lambda largest, other: sizes[other.number] >= SMALLEST_SHARE * sizes[largest.number],
        lambda each: models + 2 * example * sizes[each.number],
    )


def _train_with(kernel: CohortKernel) -> Compute:
    def train(chunk: Chunk) -> list[Answer]:
        started, method = time.perf_counter(), chunk[0].place.config.method
        trainees = [_trainee(each) for each in chunk]
        kept: Sequence[Params | None] = [None] * len(chunk)
        if method.client_state == "none":
            updates = stacked_update(kernel, trainees, method).each()
        else:
            update, own = stacked_update_with_state(kernel, trainees, method, [each.place.kept for each in chunk])
            updates, kept = update.each(), apart({name: tensor.cpu() for name, tensor in own.items()})
        seconds = (time.perf_counter() - started) / len(chunk)  # each client's share
        sizes = [len(each.place.data.support) for each in chunk]
        return [
            Answer(each.number, train_reply(update, each.place.config, size, seconds), left, each.round)
            for update, left, each, size in zip(updates, kept, chunk, sizes, strict=True)
        ]

    return train


def _evaluate_with(kernel: DenseKernel) -> Compute:
    scratch = Scratch()  # for all chunks of a phase, and no longer

    def evaluate(chunk: Chunk) -> list[Answer]:
        params = _before_adaptation(kernel, chunk)
        places, all_metrics = [each.place for each in chunk], chunk[0].all_metrics
        curves = cohort_curves(kernel, places, params, scratch, all_metrics=all_metrics)
        replies: list[dict[str, MetricValue]] = [{**own} for own in curves]
        for shots in zip(*(shots_of(each.place, chunk[0].shots) for each in chunk), strict=True):
            few = [replace(each, place=shot.place) for each, shot in zip(chunk, shots, strict=True)]
            start = _before_adaptation(kernel, few) if is_alone(chunk[0].place.config) else params
            of_shot = cohort_curves(kernel, [shot.place for shot in shots], start, scratch)
            for reply, shot, own in zip(replies, shots, of_shot, strict=True):
                reply.update(shot.metrics(own))
        if all_metrics:
            for number, (reply, each) in enumerate(zip(replies, chunk, strict=True)):
                start = {name: tensor[number] for name, tensor in params.items()}
                reply.update(global_curves(each.place, start, is_trained=True))
        return [
            Answer(each.number, EvaluateReply(len(each.place.data.test), own))
            for each, own in zip(chunk, replies, strict=True)
        ]

    return evaluate


def _before_adaptation(kernel: DenseKernel, chunk: Chunk) -> Params:
    """Return the models that clients adapt, stacked: those that they were sent, or have trained alone."""
    if not is_alone(chunk[0].place.config):
        return stack_params([each.params for each in chunk])
    trained: dict[int, Params] = {}
    _, kernel = kernel.split(0)  # of its own, since training lets its results be overwritten, and adaptation does not
    for part in training_chunks(kernel, chunk):
        config, point = part[0].place.config, stack_params([each.params for each in part])
        for round_number in rounds_alone(config):
            trainees = [_trainee(replace(each, round=round_number)) for each in part]
            point = stacked_update(kernel, trainees, config.method, point).params
        trained |= {each.number: own for each, own in zip(part, apart(point), strict=True)}
    return stack_params([trained[each.number] for each in chunk])


def _trainee(assignment: Assignment) -> Trainee:
    place = assignment.place
    return Trainee(
        assignment.params, place.data.support, Stream(place.config.seed, place.data.client_id, assignment.round)
    )


def _by_model(assignments: Chunk) -> list[list[Assignment]]:
    """Return the assignments in groups of one model, which clients of one run share, and one round if it is read."""
    groups: dict[tuple[int, int], list[Assignment]] = {}
    for assignment in assignments:
        is_read = assignment.place.config.method.step_sizes == "observed"
        key = id(assignment.place.model), assignment.round if is_read else 0
        groups.setdefault(key, []).append(assignment)
    return list(groups.values())


def _chunks(
    ordered: Chunk, is_alike: Callable[[Assignment, Assignment], bool], num_bytes_of: Callable[[Assignment], int]
) -> list[list[Assignment]]:
    """Return consecutive parts, each of members alike its first one, which is its largest, within the memory."""
    budget = MEMORY.get(ordered[0].place.data.support.device.type, MEMORY["cpu"])
    chunks: list[list[Assignment]] = []
    for assignment in ordered:
        if chunks:
            largest = chunks[-1][0]
            fits = (len(chunks[-1]) + 1) * num_bytes_of(largest) <= budget
            if fits and is_alike(largest, assignment):
                chunks[-1].append(assignment)
                continue
        chunks.append([assignment])
    return chunks


def _can_be_judged(assignment: Assignment) -> bool:
    data = assignment.place.data
    return len(data.support) > 0 and len(data.test) + len(data.validation) > 0


def _num_examples(place: Workplace) -> int:
    return len(place.data.support) + len(place.data.validation) + len(place.data.test)


def _example_bytes(group: Chunk) -> int:
    support = group[0].place.data.support
    return tree_bytes(support.inputs) // max(1, len(support))
