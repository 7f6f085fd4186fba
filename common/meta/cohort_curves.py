"""Adaptation curves of several clients at once: plain gradient steps on the support split, judged on other examples."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nufed.common.examples import TaskInfo
from nufed.common.meta.meta_sgd import minus_product
from nufed.common.meta.proximal import proximal_pull
from nufed.common.meta.schedule import size_at
from nufed.common.metrics.judged import Judged
from nufed.common.metrics.judging import compute_all
from nufed.common.metrics.registry import Compute
from nufed.common.params import Params, add_scaled
from nufed.common.steps.cohort_dense import DenseKernel
from nufed.common.steps.cohort_kernel import CohortBatch, Stacked
from nufed.common.tasks import find_task
from nufed.common.trees import one_tensor


@dataclass(frozen=True)
class JudgeBy:
    """What clients are judged by.

    Attributes:
        task: what outputs and targets are.
        computes: the metrics by name.
        in_units: turns outputs and targets into those that metrics are computed from.
    """

    task: TaskInfo
    computes: Mapping[str, Compute]
    in_units: Callable[[Tensor], Tensor]


MOST_PRODUCTS = 2**26
"""Inner products of inputs that are kept: N (N + T) numbers grow with the square of a client's examples."""


@dataclass(frozen=True)
class Judgement:
    """m clients' results on one split, after s = 0 … S steps.

    Attributes:
        losses: [S+1, m], means over each client's examples.
        metrics: by name, [S+1, m] in float64.
    """

    losses: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Adaptation:
    """How m clients adapt.

    Attributes:
        sizes: α_0, α_1, …, of which the last is that of all further steps.
        own_sizes: step sizes of each parameter, stacked, in their place; empty for none.
        head: names of the parameters that are adapted; None for all.
        strength: λ, by which a client is held to the anchor; 0 for not at all.
        anchor: the models that clients are held to, stacked; empty for those that they begin with.
    """

    sizes: Sequence[float]
    own_sizes: Stacked = field(default_factory=dict)
    head: Collection[str] | None = None
    strength: float = 0.0
    anchor: Stacked = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Return whether each step moves all parameters against the loss's gradient, by one size."""
        return not self.own_sizes and self.head is None and not self.strength

    def moved(self, kernel: DenseKernel, params: Stacked, batch: CohortBatch, step: int, anchor: Stacked) -> Params:
        """Return the parameters after step number `step` on a batch."""
        tape = kernel.tape(params, batch, curvature=False, moved=self.head)
        pull = proximal_pull(params, anchor, self.strength) if self.strength else None
        if self.own_sizes:
            slope = add_scaled(tape.gradient(), pull, 1.0) if pull else tape.gradient()
            return minus_product(params, self.own_sizes, slope)
        size = size_at(self.sizes, step)
        point = tape.descend(size)
        return add_scaled(point, pull, -size) if pull else point  # what is not adapted is where it was


def outputs_while_adapting(
    kernel: DenseKernel, params: Stacked, batches: Iterable[CohortBatch], inputs: Tensor, adaptation: Adaptation
) -> Iterator[Tensor]:
    """Yield the outputs [m, T, K] for `inputs` [m, T, ...] after s = 0 … S steps, one on each of S batches."""
    if adaptation.head is not None:  # what the layers below it make of the examples stays as it is
        below, kernel = kernel.split(kernel.lowest(adaptation.head))
        inputs, batches = below.outputs(params, inputs), _through(below, params, batches)
        params = {name: params[name] for layer in kernel.layers for name in layer.names}
    point, anchor = params, adaptation.anchor or params
    yield kernel.outputs(point, inputs)
    for step, batch in enumerate(batches):
        point = adaptation.moved(kernel, point, batch, step, anchor)
        yield kernel.outputs(point, inputs)


def _through(below: DenseKernel, params: Stacked, batches: Iterable[CohortBatch]) -> Iterator[CohortBatch]:
    """Yield the batches as layers see them that are above others; a batch that comes again is computed once."""
    before, known = None, None
    for batch in batches:
        if batch is not before or known is None:
            before, known = batch, replace(batch, inputs=below.outputs(params, one_tensor(batch.inputs)))
        yield known


class Scratch:
    """Lends memory to one batched computation after another; holds as much as the largest of them has asked for.

    The allocator of the C library gives megabytes back to the system at once, and to have them mapped in anew for each
    computation takes a sixth of its time.
    """

    def __init__(self) -> None:
        """Hold nothing."""
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a contiguous tensor of any content, of `like`'s type and device, until the name is next asked for."""
        count, held = math.prod(shape), self._held.get(name)
        if held is None or held.numel() < count or held.dtype != like.dtype or held.device != like.device:
            held = self._held[name] = like.new_empty(count)
        return held[:count].view(*shape)


@dataclass(frozen=True)
class JudgedBeside:
    """What m clients adapt on and are judged on, in one tensor.

    Attributes:
        rows: [m, N + T, ...], a client's N support inputs and behind them the T that it is judged on.
        support: the first N of `rows`, with their targets.
        scratch: where inner products are kept.
    """

    rows: Tensor
    support: CohortBatch
    scratch: Scratch


def outputs_through_products(
    kernel: DenseKernel, params: Stacked, examples: JudgedBeside, steps: tuple[Sequence[float], int]
) -> Iterator[Tensor]:
    """Yield what `outputs_while_adapting` does for S steps on one and the same batch, without moving the first layer.

    Its weights only ever move by multiples of the support inputs X, W_1 ← W_1 - α δᵀX, so its sums move by multiples
    of their inner products: for any inputs Y, Y W_1ᵀ ← Y W_1ᵀ - α (Y Xᵀ) δ. With Y Xᵀ computed once, a step costs
    N (N + T) multiplications for each unit instead of (2N + T) for each unit and input.

    Args:
        kernel: of at least two layers.
        params: stacked; not changed.
        examples: X with its targets, and Y = X and what is judged; the outputs are those for the latter.
        steps: sizes α_0, α_1, …, of which the last is that of all further steps, and number of steps S.
    """
    sizes, num_steps = steps
    first, rest = kernel.layers[0], kernel.split(1)[1]
    if first.activation is None:
        raise AssertionError("the first of several layers has an activation")
    support, rows = examples.support, examples.rows.flatten(2)
    clients, size = support.shares.shape
    products = examples.scratch.take("products", (clients, rows.shape[1], size), rows)
    torch.bmm(rows, rows[:, :size].transpose(1, 2), out=products)
    sums = torch.bmm(rows, params[first.weight].transpose(1, 2))
    if first.bias:
        sums += params[first.bias].unsqueeze(1)
        products += 1  # the bias moves as the weight of an input that is 1 everywhere
    upper = {name: tensor for name, tensor in params.items() if name not in (first.weight, first.bias)}
    for step in range(num_steps + 1):
        values = first.activation.value(sums)
        yield rest.outputs(upper, values[:, size:])
        if step < num_steps:
            step_size = size_at(sizes, step)
            tape = rest.tape(upper, replace(support, inputs=values[:, :size]), curvature=False)
            slope = first.activation.slope(sums[:, :size], values[:, :size])
            sums.baddbmm_(products, tape.input_gradient().mul_(slope), alpha=-step_size)
            upper = tape.descend(step_size)


def products_pay(kernel: DenseKernel, num_support: int, num_judged: int, num_steps: int) -> bool:
    """Return whether `outputs_through_products` needs fewer multiplications, and no more memory than it may.

    Args:
        kernel: of the clients' models.
        num_support: N, examples in the batch that all steps are taken on.
        num_judged: T, examples judged at each step.
        num_steps: S.
    """
    if len(kernel.layers) < 2 or num_support * (num_support + num_judged) > MOST_PRODUCTS:
        return False
    units, inputs = kernel.layers[0].shape
    products = num_support * (num_support + num_judged) * (inputs + units * num_steps)
    return products < (2 * num_support + num_judged) * inputs * units * num_steps


def judge_outputs(
    outputs: Iterator[Tensor], targets: Tensor, weights: Sequence[Tensor], by: JudgeBy
) -> list[Judgement]:
    """Return losses and metrics on each split.

    Args:
        outputs: [m, T, K] for each s.
        targets: [m, T] class numbers, or [m, T, K] values.
        weights: for each split [m, T], 1/T_i for its examples and 0 for all others.
        by: what they are judged by.
    """
    losses: list[list[Tensor]] = [[] for _ in weights]
    found: list[dict[str, list[Tensor]]] = [{name: [] for name in by.computes} for _ in weights]
    counted, shown, meaning = [split > 0 for split in weights], by.in_units(targets), find_task(by.task)
    for out in outputs:
        each, values = meaning.losses(out, targets), by.in_units(out)
        best = values.argmax(-1) if by.task.kind == "classification" and by.computes else None
        for number, split in enumerate(weights):
            losses[number].append((each * split).sum(1))
            for name, metric in compute_all(
                by.computes, Judged(values, shown, counted[number], known_best=best)
            ).items():
                found[number][name].append(metric)
    return [
        Judgement(torch.stack(loss), {name: torch.stack(values) for name, values in measures.items()})
        for loss, measures in zip(losses, found, strict=True)
    ]
