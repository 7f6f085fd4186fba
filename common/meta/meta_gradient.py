"""What every estimator takes and returns.

The meta-gradient of F_i(w) = f_i(w_ν) is, with A(x) = I - α ∇²f_i(x),

    ∇F_i(w) = A(w_0) A(w_1) ⋯ A(w_{ν-1}) ∇f_i(w_ν):

from the right, the factor of the last inner point is applied to the outer gradient first.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic

from torch import Tensor

from nufed.common.params import Params, norm
from nufed.common.steps.steps import AnyBatch, Size


@dataclass(frozen=True)
class Costs:
    """Work done, in evaluations on one batch.

    Attributes:
        gradient_evaluations: forward and backward passes.
        hvps: Hessian-vector products.
    """

    gradient_evaluations: int = 0
    hvps: int = 0

    def __add__(self, other: "Costs") -> "Costs":
        """Return the sum of the counts."""
        return Costs(self.gradient_evaluations + other.gradient_evaluations, self.hvps + other.hvps)


@dataclass(frozen=True)
class MetaBatches(Generic[AnyBatch]):
    """The batches of one meta step, of one client or of several at once.

    Attributes:
        inner: I_0 … I_{ν-1}, one for each fine-tuning step.
        outer: O, for the gradient after fine-tuning.
        hessian: H_0 … H_{ν-1}, for the Hessian at each inner point; the inner batches where they are coupled.
    """

    inner: tuple[AnyBatch, ...]
    outer: AnyBatch
    hessian: tuple[AnyBatch, ...]


@dataclass(frozen=True)
class Estimate:
    """One client's meta-gradient, or those of m clients with everything stacked.

    Attributes:
        gradient: estimate of ∇F_i(w).
        outer_loss: f_i(w_ν; O), the loss after fine-tuning; scalar or [m].
        outer_norm: ‖∇f_i(w_ν; O)‖, a number or [m]. The ratio of the gradient's norm to it tells how the backward
            product grows.
        costs: evaluations made for each client.
        measures: what else tells how good one client's estimate is, by the names of `TRAIN_REPLY`; lower is better.
    """

    gradient: Params
    outer_loss: Tensor
    outer_norm: Size
    costs: Costs
    measures: Mapping[str, float] = field(default_factory=dict)

    def growth(self) -> float:
        """Return one client's ‖∇F_i‖ / ‖∇f_i(w_ν)‖; far above 1, the inner step size is too large for ν steps."""
        outer_norm = float(self.outer_norm)
        return norm(self.gradient) / outer_norm if outer_norm > 0 else 1.0


MetaGradient = Callable[[Mapping[str, Tensor], MetaBatches[AnyBatch]], Estimate]
