"""Sums over examples in which no one has more than a known part: each example's term is clipped before it is added.

Terms are a gradient ∇f_e(w), or a Hessian-vector product ∇²f_e(w) v. Those of one *unit*, an example or all examples of
a group such as a patient, are added up and clipped together to a length C. Each example is computed by itself, as a
batch of one that `torch.func.vmap` maps the loss over, so that also a loss or a layer that mixes the examples of a
batch has terms that depend on one example alone.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nufed.common import trees
from nufed.common.examples import Batch
from nufed.common.params import Params, num_bytes
from nufed.common.steps.differentiate import gradient, hessian_vector_product
from nufed.common.task import LossFn

MEMORY = 64 * 2**20
"""Bytes that the terms of the examples computed at once may take."""

MARGIN = 2.0**-32
"""Share of C by which terms are clipped shorter: more than the rounding of lengths, products and sums comes to."""

Term = Callable[[Params, Batch], tuple[Tensor, Params]]
"""(parameters, one example as a batch) -> its loss and its term."""


@dataclass(frozen=True)
class SampledBatch:
    """Units that were drawn for one batch, each by itself with one probability.

    Attributes:
        examples: all examples of these units, those of one unit behind one another; may be none.
        units: [B] 0, 0, 1, …: which unit each example is of; None where each is its own.
        expected_size: examples that a batch has on average, by which sums are divided whatever was drawn.
    """

    examples: Batch
    units: Tensor | None
    expected_size: float

    def double(self) -> "SampledBatch":
        """Return the batch in float64."""
        return replace(self, examples=self.examples.double())

    def __len__(self) -> int:
        """Return the number of examples drawn."""
        return len(self.examples)


@dataclass(frozen=True)
class ClippedSum:
    """A sum of clipped terms.

    Attributes:
        total: Σ of the units' terms, float64.
        loss: mean loss over the examples drawn; NaN where none was. It is not private.
    """

    total: Params
    loss: Tensor


def gradient_sum(
    loss: LossFn, params: Mapping[str, Tensor], batch: SampledBatch, clip: float, *, mapped: bool = True
) -> ClippedSum:
    """Return Σ_u clip(Σ_{e in u} ∇f_e(w)), where clip scales down to the length C what is longer.

    Args:
        loss: mean over the examples of a batch; called with one example at a time.
        params: w.
        batch: the units drawn.
        clip: C.
        mapped: whether examples are computed together by `torch.func.vmap`; else one after another.
    """

    def term(point: Params, one: Batch) -> tuple[Tensor, Params]:
        found, value = torch.func.grad_and_value(loss)(point, one)
        return value, found

    def alone(point: Params, one: Batch) -> tuple[Tensor, Params]:
        return torch.zeros(()), gradient(loss, point, one)

    return _clipped_sum(term if mapped else alone, params, batch, clip, mapped=mapped)


def product_sum(  # noqa: PLR0913 - what `gradient_sum` takes, and v
    loss: LossFn,
    params: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    batch: SampledBatch,
    clip: float,
    *,
    mapped: bool = True,
) -> ClippedSum:
    """Return Σ_u clip(Σ_{e in u} ∇²f_e(w) v), by double backward; arguments as those of `gradient_sum`, and v."""
    along = {name: tensor.detach() for name, tensor in direction.items()}

    def slope(point: Params, one: Batch) -> Tensor:
        found = torch.func.grad(loss)(point, one)
        parts = [(found[name] * along[name]).sum() for name in point]
        return torch.stack(parts).sum()

    def term(point: Params, one: Batch) -> tuple[Tensor, Params]:
        found, value = torch.func.grad_and_value(slope)(point, one)
        return value, found

    def alone(point: Params, one: Batch) -> tuple[Tensor, Params]:
        return torch.zeros(()), hessian_vector_product(loss, point, along, one)

    return _clipped_sum(term if mapped else alone, params, batch, clip, mapped=mapped)


def _clipped_sum(
    term: Term, params: Mapping[str, Tensor], batch: SampledBatch, clip: float, *, mapped: bool
) -> ClippedSum:
    point = {name: tensor.detach() for name, tensor in params.items()}
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in point.items()}
    losses = [next(iter(total.values())).new_zeros(0)]
    for part in _parts(batch, max(1, MEMORY // max(1, num_bytes(point)))):
        values, terms = _mapped_terms(term, point, part.examples) if mapped else _each(term, point, part.examples)
        losses.append(values.detach().double())
        of_units = terms if part.units is None else _by_unit(terms, part.units)
        for name, sums in _clipped(of_units, clip * (1 - MARGIN)).items():
            total[name] += sums
    return ClippedSum(total, torch.cat(losses).mean())


def _mapped_terms(term: Term, point: Params, examples: Batch) -> tuple[Tensor, Params]:
    """Return the terms of all examples [B, …], each computed as a batch of one."""
    inputs, targets = (
        trees.tree_map(lambda leaf: leaf.unsqueeze(1), tree) for tree in (examples.inputs, examples.targets)
    )
    weights = None if examples.weights is None else examples.weights.unsqueeze(1)
    if weights is None:
        values, terms = torch.func.vmap(lambda x, y: term(point, Batch(x, y)))(inputs, targets)
    else:
        values, terms = torch.func.vmap(lambda x, y, w: term(point, Batch(x, y, weights=w)))(inputs, targets, weights)
    return values, terms


def _each(term: Term, point: Params, examples: Batch) -> tuple[Tensor, Params]:
    """Return what `_mapped_terms` does, computed one after another: for models that cannot be mapped."""
    device = next(iter(point.values())).device
    each = [term(point, examples.rows(torch.tensor([row], device=device))) for row in range(len(examples))]
    terms = {name: torch.stack([found[name] for _, found in each]) for name in point}
    return torch.stack([value for value, _ in each]), terms


def _by_unit(terms: Params, units: Tensor) -> Params:
    """Return the sums of the terms of each unit, [units, …]."""
    numbers = units - units[0]
    num_units = int(numbers[-1]) + 1
    return {
        name: tensor.new_zeros(num_units, *tensor.shape[1:], dtype=torch.float64).index_add_(
            0, numbers, tensor.double()
        )
        for name, tensor in terms.items()
    }


def _clipped(terms: Params, longest: float) -> Params:
    """Return the sum over units of their clipped terms, float64; those with NaN or infinities are left out.

    One such term would show in every later model, whatever the noise; 0 is as good a term as any other.
    """
    squares = [
        torch.linalg.vector_norm(tensor.reshape(len(tensor), -1), dim=1, dtype=torch.float64).square()
        for tensor in terms.values()
    ]
    lengths = torch.stack(squares).sum(0).sqrt()
    finite = lengths.isfinite()
    if not bool(finite.all()):
        lengths, terms = lengths[finite], {name: tensor[finite] for name, tensor in terms.items()}
    scales = torch.where(lengths > longest, longest / lengths, torch.ones_like(lengths))
    return {name: torch.tensordot(scales, tensor.detach().double(), dims=1) for name, tensor in terms.items()}


def _parts(batch: SampledBatch, most: int) -> Iterator[SampledBatch]:
    """Yield the batch in parts of about `most` examples, none of which divides a unit."""
    start, size = 0, len(batch)
    while start < size:
        end = min(start + most, size)
        if batch.units is not None and end < size:
            end = int(torch.searchsorted(batch.units, batch.units[end - 1].item(), right=True))
        rows = torch.arange(start, end, device=trees.first_leaf(batch.examples.targets).device)
        yield SampledBatch(
            batch.examples.rows(rows), None if batch.units is None else batch.units[start:end], batch.expected_size
        )
        start = end
