"""What a metric is computed from: outputs beside targets, of one client or of several clients or steps at once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Judged:
    """Outputs beside the targets that they were to meet.

    Attributes:
        outputs: [..., N, *output shape] of a model; of regression in the units that the targets came in.
        targets: [..., N, *target shape]; whatever a task of one's own compares with, in tasks of one's own.
        counted: [..., N] whether an example counts: clients of fewer examples are filled up.
        ignored: the target that is left out, which is the padding of tokens and masks; None for none.
        known_best: `best`, where it is known already: splits of one client share their outputs.
    """

    outputs: Tensor
    targets: Any
    counted: Tensor
    ignored: int | None = None
    known_best: Tensor | None = None

    @property
    def best(self) -> Tensor:
        """Return the class of each example's largest output, [..., N], of outputs [..., N, C]."""
        return self.outputs.argmax(-1) if self.known_best is None else self.known_best

    @property
    def leading(self) -> int:
        """Return how many dimensions stand before that of the examples."""
        return self.counted.dim() - 1

    @property
    def weights(self) -> Tensor:
        """Return 1 for each example that counts, else 0; [..., N] in float64."""
        return self.counted.double()


def judged(outputs: Tensor, targets: Any, ignored: int | None = None) -> Judged:
    """Return the outputs [N, ...] of one client beside its targets, all of which count."""
    counted = torch.ones(len(outputs), dtype=torch.bool, device=outputs.device)
    return Judged(outputs, targets, counted, ignored)


def mean_of_defined(values: Tensor, dim: int = -1) -> Tensor:
    """Return the mean over the values that are not NaN; NaN where none is."""
    defined = ~values.isnan()
    return values.nan_to_num(0.0, torch.inf, -torch.inf).sum(dim) / defined.sum(dim)


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above / below; NaN where below is 0."""
    return torch.where(below == 0, torch.nan, above / below)
