"""The inner step of several clients at once, in the forms that estimators call."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nufed.common.params import Params, add_scaled
from nufed.common.steps.cohort_dense import DenseTape
from nufed.common.steps.cohort_kernel import CohortBatch, CohortKernel, Stacked, add_scaled_each, norms
from nufed.common.steps.steps import TINY, Algebra, PullBack, Size, SizedPullBack, Steps


def _add_scaled(params: Stacked, direction: Stacked, scale: Size) -> Params:
    if isinstance(scale, Tensor):
        return add_scaled_each(params, direction, scale)
    return add_scaled(params, direction, scale)


def _ratio(numerator: Size, denominators: Size) -> Size:
    divisors = torch.as_tensor(denominators).clamp(min=TINY)
    return torch.ones_like(divisors).mul_(numerator).div_(divisors)


def _subtract_quotient(direction: Params, ahead: Params, behind: Params, inner_lr: float, width: Size) -> Params:
    return _add_scaled(direction, add_scaled(ahead, behind, -1.0), -inner_lr / width)


EACH_CLIENT = Algebra(norms, _add_scaled, _ratio, _subtract_quotient)


def cohort_steps(kernel: CohortKernel, inner_lr: float) -> Steps[CohortBatch]:
    """Return the steps of stacked parameters [m, ...]; losses are [m].

    Results are valid until the kernel's next `start_step`.
    """

    def value_and_gradient(params: Mapping[str, Tensor], batch: CohortBatch) -> tuple[Tensor, Params]:
        tape = kernel.tape(params, batch, curvature=False)
        return tape.losses(), tape.gradient()

    def descend(params: Mapping[str, Tensor], batch: CohortBatch) -> Params:
        return kernel.tape(params, batch, curvature=False).descend(inner_lr)

    def both(params: Mapping[str, Tensor], batch: CohortBatch) -> tuple[Params, Callable[[], Params]]:
        tape = kernel.tape(params, batch, curvature=False)
        return tape.descend(inner_lr), tape.gradient

    def linearize(params: Mapping[str, Tensor], batch: CohortBatch) -> tuple[Params, PullBack]:
        tape = kernel.tape(params, batch, curvature=True)

        def pull_back(direction: Params) -> Params:
            return tape.contract(direction, inner_lr)

        moved = tape.descend(inner_lr)
        return moved, SizedPullBack(pull_back, tape.num_bytes) if isinstance(tape, DenseTape) else pull_back

    def pull_back(params: Mapping[str, Tensor], batch: CohortBatch, direction: Params) -> Params:
        return kernel.tape(params, batch, curvature=True).contract(direction, inner_lr)

    return Steps(inner_lr, value_and_gradient, descend, linearize, pull_back, EACH_CLIENT, both)
