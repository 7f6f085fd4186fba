"""What one batched computation over several clients is made of: their batches, and the loss around one point each.

A *cohort* is m clients whose parameters are stacked: every tensor has a leading dimension m. The clients do not mix,
so each operation below is m independent ones.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from nufed.common.params import Params
from nufed.common.trees import Tree, in_double

Stacked = Mapping[str, Tensor]


@dataclass(frozen=True)
class CohortBatch:
    """One batch for each of m clients, padded to a common length B.

    Attributes:
        inputs: a tree whose leaves are [m, B, ...].
        targets: as the task has them, [m, B, ...].
        shares: [m, B], each example's share in its client's mean: 1/B_i, or 0 for padding.
        own_weights: [m, B], what each example counts beside that (`Batch.weights`); None where all count the same.
    """

    inputs: Tree
    targets: Tree
    shares: Tensor
    own_weights: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """Return [m, B], what each example's loss is multiplied by."""
        return self.shares if self.own_weights is None else self.shares * self.own_weights

    def double(self) -> Self:
        """Return the batches in float64; the shares are computed anew, for in float32 1/B is rounded."""
        sizes = self.shares.count_nonzero(1).unsqueeze(1)
        shares = (self.shares > 0).double() / sizes
        own = None if self.own_weights is None else self.own_weights.double()
        inputs, targets = in_double(self.inputs), in_double(self.targets)
        return replace(self, inputs=inputs, targets=targets, shares=shares, own_weights=own)


class CohortTape(Protocol):
    """The clients' losses around one point each, on one batch each."""

    def losses(self) -> Tensor:
        """Return f_i(x_i), [m]; weighted mean over examples."""

    def gradient(self) -> Params:
        """Return ∇f_i(x_i)."""

    def descend(self, step_size: float) -> Params:
        """Return x_i - step_size ∇f_i(x_i) of what is moved, and the rest as it is."""

    def contract(self, direction: Params, step_size: float, onto: Params | None = None) -> Params:
        """Return onto_i - step_size ∇²f_i(x_i) v_i; only of a tape recorded with `curvature`.

        Args:
            direction: v; 0 for parameters that it lacks.
            step_size: that the product is multiplied by.
            onto: of all parameters, may be overwritten, so that a sweep over many inner points needs no memory for
                each; None is v itself.
        """


class CohortKernel(Protocol):
    """A way of computing losses of m clients at once.

    Attributes:
        takes_padding: whether batches may have padding, that is, unequal weights.
    """

    takes_padding: bool

    def start_step(self) -> None:
        """Begin a step: nothing that earlier tapes returned is needed any more, and its memory may be used again."""

    def tape(
        self, params: Stacked, batch: CohortBatch, *, curvature: bool, moved: Collection[str] | None = None
    ) -> CohortTape:
        """Evaluate the losses at `params`.

        Args:
            params: where.
            batch: on which examples.
            curvature: whether to keep what `contract` needs.
            moved: names of the parameters that `descend` moves, `gradient` not being asked for; None for all.
        """


def stack_params(params: list[Mapping[str, Tensor]]) -> Params:
    """Return m clients' parameters as one stacked set, [m, ...] each."""
    return {name: torch.stack([each[name] for each in params]) for name in params[0]}


def apart(params: Stacked) -> list[Params]:
    """Return each client's parameters, in the memory of the stacked ones."""
    columns = zip(*(tensor.unbind(0) for tensor in params.values()), strict=True)
    return [dict(zip(params, own, strict=True)) for own in columns]


def norms(params: Stacked) -> Tensor:
    """Return each client's Euclidean norm over all its tensors together, [m]."""
    parts = [torch.linalg.vector_norm(tensor.reshape(len(tensor), -1), dim=1) for tensor in params.values()]
    total: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
    return total


def clipped_each(direction: Stacked, max_norm: float) -> Params:
    """Return each client's direction, scaled down to the length `max_norm` if it is longer."""
    lengths = norms(direction)
    scales = torch.where(lengths > max_norm, max_norm / lengths, torch.ones_like(lengths))
    return {name: tensor * _beside(scales, tensor) for name, tensor in direction.items()}


def add_scaled_each(params: Stacked, direction: Stacked, scales: Tensor) -> Params:
    """Return x_i + scales_i v_i, with scales [m]."""
    return {name: torch.addcmul(tensor, direction[name], _beside(scales, tensor)) for name, tensor in params.items()}


def _beside(scales: Tensor, stacked: Tensor) -> Tensor:
    """Return scales [m] in a shape that multiplies each client's part of a tensor [m, …]."""
    return scales.reshape(-1, *[1] * (stacked.ndim - 1))
