"""Adaptation curves of several clients as one batched computation."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from nufed.client.personalize import Curves, adaptation_batches, closing_numbers_of
from nufed.client.workplace import Workplace
from nufed.common.data.target_scaling import TargetScaling
from nufed.common.examples import Examples
from nufed.common.meta.cohort_curves import (
    Adaptation,
    JudgeBy,
    JudgedBeside,
    Judgement,
    Scratch,
    judge_outputs,
    outputs_through_products,
    outputs_while_adapting,
    products_pay,
)
from nufed.common.meta.meta_sgd import split_step_sizes
from nufed.common.meta.parts import head_names
from nufed.common.meta.schedule import inner_sizes
from nufed.common.metrics.judging import judging
from nufed.common.params import Params
from nufed.common.steps.cohort_dense import DenseKernel
from nufed.common.steps.cohort_kernel import CohortBatch, Stacked, stack_params
from nufed.common.trees import cat, one_tensor


def cohort_curves(
    kernel: DenseKernel, places: Sequence[Workplace], params: Stacked, scratch: Scratch, *, all_metrics: bool = False
) -> list[Curves]:
    """Return what `adaptation_curves` does for each client, up to rounding.

    Args:
        kernel: of the clients' models.
        places: clients of one configuration, each with support examples.
        params: the server's models, stacked in the order of the clients.
        scratch: memory for what is large, free for the next call after this one.
        all_metrics: report all of the run's metrics, and what they are compared with; else the primary one alone.
    """
    splits = [(place.data.test, place.data.validation) for place in places]
    judged, outputs = _outputs(kernel, params, places, [_join(*pair) for pair in splits], scratch)
    sizes = torch.tensor([[len(split) for split in pair] for pair in splits], device=judged.shares.device)
    evaluation, task = places[0].config.evaluation, places[0].task
    by, kept = judging(evaluation, task), _Kept(evaluation.primary_step if all_metrics else -1)
    judge_by = JudgeBy(task, by.computes if all_metrics else by.on_the_way, _in_units(places))
    results = judge_outputs(
        kept.watching(outputs), one_tensor(judged.targets), _split_weights(sizes, judged.shares), judge_by
    )
    curves: list[Curves] = [{} for _ in places]
    for name, column, result in zip(("test", "validation"), sizes.T.tolist(), results, strict=True):
        _enter(curves, name, result, column)
    for place, own, out, size in zip(places, curves, kept.outputs, sizes[:, 0].tolist(), strict=False):
        if size:
            own.update(closing_numbers_of(place, by, out[:size]))
    return curves


class _Kept:
    """Holds the outputs after one of the steps."""

    def __init__(self, step: int) -> None:
        self._step = step
        self.outputs: Sequence[Tensor] = ()

    def watching(self, outputs: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield the outputs after each step; keep those that are wanted."""
        for step, out in enumerate(outputs):
            if step == self._step:
                self.outputs = list(out)
            yield out


def _in_units(places: Sequence[Workplace]) -> Callable[[Tensor], Tensor]:
    """Return what turns outputs and targets [m, T, K] into the units that the clients' targets came in."""
    scalings = [place.data.target_scaling for place in places]
    given = [scaling for scaling in scalings if scaling is not None]
    if not given:
        return lambda numbers: numbers
    same = TargetScaling((0.0,) * len(given[0].means), (1.0,) * len(given[0].means))
    rows = [[(scaling or same).means, (scaling or same).scales] for scaling in scalings]
    # On the device once: a copy for each client and step would take longer than the step.
    means, scales = torch.tensor(rows, dtype=torch.float64, device=places[0].data.support.device).unsqueeze(2).unbind(1)
    return lambda numbers: numbers.double() * scales + means


def _outputs(
    kernel: DenseKernel, params: Stacked, places: Sequence[Workplace], judged: Sequence[Examples], scratch: Scratch
) -> tuple[CohortBatch, Iterator[Tensor]]:
    """Return the judged examples as one batch [m, T, ...], and the outputs for it after s = 0 … S steps."""
    config = places[0].config
    model, adaptation = _adaptation(places, params)
    num_steps = config.evaluation.num_adapt_steps
    if config.evaluation.adapt_batch_size:
        batch, drawn = _pad(judged), _drawn_batches(places)
        return batch, outputs_while_adapting(kernel, model, drawn, one_tensor(batch.inputs), adaptation)
    support = [place.data.support for place in places]
    num_support, num_judged = (max(map(len, parts)) for parts in (support, judged))
    if not adaptation.is_plain or not products_pay(kernel, num_support, num_judged, num_steps):
        batch, repeated = _pad(judged), [_pad(support)] * num_steps
        return batch, outputs_while_adapting(kernel, model, repeated, one_tensor(batch.inputs), adaptation)
    like = one_tensor(support[0].inputs)
    rows = scratch.take("rows", (len(places), num_support + num_judged, *like.shape[1:]), like)
    whole, batch = _pad(support, rows[:, :num_support]), _pad(judged, rows[:, num_support:])
    beside = JudgedBeside(rows, whole, scratch)
    return batch, outputs_through_products(kernel, model, beside, (adaptation.sizes, num_steps))


def _adaptation(places: Sequence[Workplace], params: Stacked) -> tuple[Params, Adaptation]:
    """Return the models that clients begin with, and how they adapt, as `fine_tune` does."""
    config, method = places[0].config, places[0].config.method
    sent, own_sizes = split_step_sizes(params)
    model = sent
    if any(place.kept for place in places):
        model = stack_params(
            [
                {name: (place.kept or {}).get(name, tensor[number]) for name, tensor in sent.items()}
                for number, place in enumerate(places)
            ]
        )
    sizes = inner_sizes(method, config.evaluation.adapt_lr or method.inner_lr)
    head = head_names(model, method.head) if method.adapted_part == "head" else None
    anchor = sent if method.client_state == "model" else model
    return model, Adaptation(sizes, own_sizes, head, method.personal_strength, anchor)


def _drawn_batches(places: Sequence[Workplace]) -> Iterator[CohortBatch]:
    """Yield S batches, each client's drawn as it would draw them alone."""
    drawn = [adaptation_batches(place.data, place.config.evaluation, seed=place.config.seed) for place in places]
    for batches in zip(*drawn, strict=True):
        yield _pad([Examples(batch.inputs, batch.targets, batch.weights) for batch in batches])


def _pad(parts: Sequence[Examples], into: Tensor | None = None) -> CohortBatch:
    """Return one batch for each client: its examples in their order, then zeros that weigh nothing.

    `into` [m, N, ...] is where the inputs are put, N being the largest number of examples; None takes new memory.
    """
    longest = max(map(len, parts))
    inputs = _padded([one_tensor(part.inputs) for part in parts], longest, into)
    targets = _padded([one_tensor(part.targets) for part in parts], longest)
    shares = inputs.new_zeros(len(parts), longest)
    for number, part in enumerate(parts):
        shares[number, : len(part)] = 1 / max(len(part), 1)
    own = [part.weights for part in parts if part.weights is not None]
    return CohortBatch(inputs, targets, shares, _padded(own, longest) if len(own) == len(parts) else None)


def _padded(parts: Sequence[Tensor], longest: int, into: Tensor | None = None) -> Tensor:
    """Return [m, longest, ...], each part followed by zeros."""
    padded = parts[0].new_empty(len(parts), longest, *parts[0].shape[1:]) if into is None else into
    for own, part in zip(padded, parts, strict=True):
        own[: len(part)] = part
        own[len(part) :] = 0
    return padded


def _join(test: Examples, validation: Examples) -> Examples:
    return Examples(cat([test.inputs, validation.inputs]), cat([test.targets, validation.targets]))


def _split_weights(sizes: Tensor, like: Tensor) -> list[Tensor]:
    """Return [m, T] weights of the test and of the validation examples, which follow them, for sizes [m, 2]."""
    positions = torch.arange(like.shape[1], device=like.device).unsqueeze(0)
    ends = sizes.cumsum(1)
    return [
        ((positions >= end - size) & (positions < end)).to(like.dtype) / size.clamp(min=1)
        for size, end in zip(sizes.T.unsqueeze(2), ends.T.unsqueeze(2), strict=True)
    ]


def _enter(curves: Sequence[Curves], name: str, result: Judgement, sizes: Sequence[int]) -> None:
    """Add a split's losses and metrics to the curves of the clients that have examples in it."""
    found = {"loss": result.losses.double(), **result.metrics}
    for measure, values in found.items():
        for own, curve, size in zip(curves, values.T.tolist(), sizes, strict=True):
            if size:
                own[f"{name}-{measure}"] = curve
