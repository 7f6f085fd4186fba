"""ARUBA: a step size of fine-tuning for each parameter, from how far clients moved it and how steep it was.

Khodak, Balcan and Talwalkar, "Adaptive Gradient-Based Meta-Learning Methods", NeurIPS 2019 (Algorithm 2):

    b ← b + ε² / (k + 1)^p + ½ (w - w_i)²        g ← g + ζ² / (k + 1)^p + Σ_t ∇f(w_t)²        η = √(b / g)

coordinate by coordinate, from b = ε² and g = ζ². Theirs goes task by task; ours takes the mean over the clients of a
round k. Each client adds its own terms to the b and g that come with w_k, so that the mean of what comes back is the
update. p is 1, ε is α ζ, so that η begins at α, and η is used at test time, as in their federated experiments.
"""

from collections.abc import Mapping
from typing import Generic

import torch
from torch import Tensor

from nufed.common.meta.meta_gradient import Estimate, MetaBatches, MetaGradient
from nufed.common.meta.meta_sgd import MOVED, SQUARED
from nufed.common.params import Params
from nufed.common.steps.steps import AnyBatch


def with_observations(params: Mapping[str, Tensor], inner_lr: float, zeta: float) -> Params:
    """Return the parameters and, behind them, b = (α ζ)² and g = ζ² of each."""
    moved = {MOVED + name: torch.full_like(tensor, (inner_lr * zeta) ** 2) for name, tensor in params.items()}
    squared = {SQUARED + name: torch.full_like(tensor, zeta**2) for name, tensor in params.items()}
    return {**params, **moved, **squared}


class Watched(Generic[AnyBatch]):
    """Holds the sum of the squares of a client's gradients, or of several clients' stacked, each as it is estimated.

    Attributes:
        squares: Σ_t ∇²  by parameter; empty before the first.
    """

    def __init__(self, meta_gradient: MetaGradient[AnyBatch]) -> None:
        """Watch an estimator."""
        self._meta_gradient = meta_gradient
        self.squares: Params = {}

    def __call__(self, params: Mapping[str, Tensor], batches: MetaBatches[AnyBatch]) -> Estimate:
        """Return the estimate."""
        estimate = self._meta_gradient(params, batches)
        for name, tensor in estimate.gradient.items():
            square = tensor.square()
            self.squares[name] = self.squares[name] + square if name in self.squares else square
        return estimate


def observed(
    sent: Mapping[str, Tensor], reached: Mapping[str, Tensor], squares: Params, *, round_number: int, first: Params
) -> Params:
    """Return a client's arrays: its model, and b and g with its own terms.

    Args:
        sent: w_k with b and g.
        reached: w_i.
        squares: Σ_t ∇f(w_t)².
        round_number: k.
        first: b and g before the first round, ε² and ζ².
    """
    arrays: Params = {}
    for name, tensor in sent.items():
        if name in reached:
            arrays[name] = reached[name]
            continue
        prefix = MOVED if name.startswith(MOVED) else SQUARED
        own = name.removeprefix(prefix)
        term = 0.5 * (sent[own] - reached[own]).square() if prefix == MOVED else squares[own]
        arrays[name] = tensor + first[name] / (round_number + 1) + term
    return arrays
