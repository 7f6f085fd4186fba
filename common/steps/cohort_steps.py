"""The inner step of several clients at once, in the forms that estimators call."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from nufed.common.params import Params, add_scaled
from nufed.common.steps.cohort_dense import DenseTape
from nufed.common.steps.cohort_kernel import CohortBatch, CohortKernel, CohortTape, Stacked, add_scaled_each, norms
from nufed.common.steps.steps import TINY, Algebra, Derivatives, PullBack, Size, SizedPullBack, Steps


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


def cohort_steps(kernel: CohortKernel, inner_lr: float, head: Collection[str] | None = None) -> Steps[CohortBatch]:
    """Return the steps of stacked parameters [m, ...]; losses are [m].

    Results are valid until the kernel's next `start_step`.

    Args:
        kernel: computes the clients' losses.
        inner_lr: α.
        head: names of the parameters that inner steps move, as in `nufed.common.meta.parts.head_steps`; None for all.
    """

    def contract(tape: CohortTape, direction: Params) -> Params:
        if head is None:
            return tape.contract(direction, inner_lr)
        return tape.contract({name: direction[name] for name in direction if name in head}, inner_lr, direction)

    def value_and_gradient(params: Mapping[str, Tensor], batch: CohortBatch) -> tuple[Tensor, Params]:
        tape = kernel.tape(params, batch, curvature=False)
        return tape.losses(), tape.gradient()

    def descend(params: Mapping[str, Tensor], batch: CohortBatch) -> Params:
        return kernel.tape(params, batch, curvature=False, moved=head).descend(inner_lr)

    def both(params: Mapping[str, Tensor], batch: CohortBatch) -> tuple[Params, Callable[[], Params]]:
        tape = kernel.tape(params, batch, curvature=False)
        return tape.descend(inner_lr), tape.gradient

    def linearize(params: Mapping[str, Tensor], batch: CohortBatch) -> tuple[Params, PullBack]:
        tape = kernel.tape(params, batch, curvature=True, moved=head)

        def pull_back(direction: Params) -> Params:
            return contract(tape, direction)

        moved = tape.descend(inner_lr)
        return moved, SizedPullBack(pull_back, tape.num_bytes) if isinstance(tape, DenseTape) else pull_back

    def pull_back(params: Mapping[str, Tensor], batch: CohortBatch, direction: Params) -> Params:
        return contract(kernel.tape(params, batch, curvature=True), direction)

    return Steps(
        inner_lr, value_and_gradient, descend, linearize, pull_back, EACH_CLIENT, both if head is None else None
    )


def cohort_derivatives(kernel: CohortKernel) -> Derivatives[CohortBatch]:
    """Return what Meta-SGD computes with, of stacked parameters; results are valid until the next `start_step`."""

    def value_and_gradient(params: Mapping[str, Tensor], batch: CohortBatch) -> tuple[Tensor, Params]:
        tape = kernel.tape(params, batch, curvature=False)
        return tape.losses(), tape.gradient()

    def minus_product(onto: Params, params: Mapping[str, Tensor], batch: CohortBatch, direction: Params) -> Params:
        return kernel.tape(params, batch, curvature=True).contract(direction, 1.0, onto)

    return Derivatives(value_and_gradient, minus_product, norms)
