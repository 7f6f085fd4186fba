"""The τ meta steps of several clients as one batched computation (docs/theory.md, section 1), for all of S_k at once.

Each client draws the batches that it would draw alone, from its own stream; only the arithmetic is shared. So the
result is that of `local_update` client by client, up to rounding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nufed.common.config import MethodConfig
from nufed.common.errors import ConfigError
from nufed.common.meta.cohort_batches import CohortBatches, Trainee, plan_of, trainee_sources
from nufed.common.meta.draw import draws_with_replacement
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.local_optimizer import LocalOptimizer
from nufed.common.meta.local_update import LocalUpdate
from nufed.common.meta.meta_gradient import Costs, Estimate, MetaBatches
from nufed.common.meta.meta_sgd import learned_sizes, split_step_sizes
from nufed.common.meta.objective import Objective, initial_params, step_direction
from nufed.common.meta.observed_sizes import Watched, observed
from nufed.common.meta.parts import head_names
from nufed.common.meta.proximal import proximal_pull
from nufed.common.meta.schedule import inner_sizes, scheduled, size_at
from nufed.common.params import Params, add_scaled
from nufed.common.steps.cohort_kernel import (
    CohortBatch,
    CohortKernel,
    Stacked,
    apart,
    clipped_each,
    norms,
    stack_params,
)
from nufed.common.steps.cohort_steps import cohort_derivatives, cohort_steps


@dataclass(frozen=True)
class CohortUpdate:
    """The work of m clients in one round, stacked.

    Attributes:
        params: w_k^i, [m, ...] each.
        losses: mean over the τ outer batches of the loss after ν inner steps, [m] in float64.
        growth: the largest ‖∇F_i‖ / ‖∇f_i(w_ν)‖ of the τ steps, [m].
        costs: evaluations made for each client.
        with_replacement: for each client, whether some batch was drawn with replacement.
    """

    params: Params
    losses: Tensor
    growth: Tensor
    costs: Costs
    with_replacement: tuple[bool, ...]

    def each(self) -> list[LocalUpdate]:
        """Return each client's own update, in main memory; what a device holds is copied once for all clients."""
        losses, growth = self.losses.tolist(), self.growth.tolist()
        models = apart({name: tensor.cpu() for name, tensor in self.params.items()})
        return [
            LocalUpdate(model, loss, largest, self.costs, replaced)
            for model, loss, largest, replaced in zip(models, losses, growth, self.with_replacement, strict=True)
        ]


def cohort_update(kernel: CohortKernel, trainees: Sequence[Trainee], method: MethodConfig) -> list[LocalUpdate]:
    """Return each client's model after τ meta steps, in the order given; arguments and errors of `stacked_update`."""
    return stacked_update(kernel, trainees, method).each()


def stacked_update(
    kernel: CohortKernel, trainees: Sequence[Trainee], method: MethodConfig, start: Params | None = None
) -> CohortUpdate:
    """Return the clients' models after τ meta steps, stacked; nothing is read from a device.

    Args:
        kernel: computes the clients' losses.
        trainees: of one model and one kind of data; of equal batch sizes (`batch_sizes`) unless the kernel pads.
        method: ν, α, τ, β, batch sizes and estimator.
        start: stacked models to begin with, in the place of those that the clients were sent.

    Raises:
        ConfigError: the estimator is unknown, or is computed for one client at a time only.
        DataError: a support split cannot be divided as `outer-holdout-fraction` asks.
    """
    sent = stack_params([trainee.params for trainee in trainees]) if start is None else start
    if method.step_sizes == "observed":
        return _observed_update(kernel, trainees, method, sent)
    is_read_later = start is not None or method.proximal_strength > 0
    point = {name: tensor.clone() for name, tensor in sent.items()} if is_read_later else sent
    return meta_steps(kernel, _batched_objective(kernel, method, sent), trainees, method, (point, sent))


def _observed_update(
    kernel: CohortKernel, trainees: Sequence[Trainee], method: MethodConfig, sent: Params
) -> CohortUpdate:
    """Return the update of models whose step sizes are observed; all clients are asked in one round."""
    model = split_step_sizes(sent)[0]
    objective = _batched_objective(kernel, method, model)
    watched = Watched(objective.meta_gradient)
    point = {name: tensor.clone() for name, tensor in model.items()}
    update = meta_steps(kernel, replace(objective, meta_gradient=watched), trainees, method, (point, model))
    first = initial_params(model, method)
    arrays = observed(sent, update.params, watched.squares, round_number=trainees[0].stream.round, first=first)
    return replace(update, params=arrays)


def meta_steps(
    kernel: CohortKernel,
    objective: Objective[CohortBatch],
    trainees: Sequence[Trainee],
    method: MethodConfig,
    models: tuple[Params, Params],
) -> CohortUpdate:
    """Return the clients' models after τ meta steps.

    Args:
        kernel: computes the clients' losses.
        objective: what they descend on.
        trainees: the clients.
        method: τ, β and what is done with a gradient.
        models: where the steps start, which is moved in place, and the server's.
    """
    (point, server), plan = models, objective.plan
    sources = [trainee_sources(trainee, method) for trainee in trainees]
    batches = CohortBatches(trainees, plan, sources, method.num_local_steps)
    losses, optimizer = list[Tensor](), LocalOptimizer(method)
    growth, costs = next(iter(point.values())).new_zeros(len(trainees)), Costs()
    for step in range(method.num_local_steps):
        kernel.start_step()
        estimate = objective.meta_gradient(point, batches.draw(step))
        direction = step_direction(estimate.gradient, point, server, method, clipped_each)
        descend_in_place(point, optimizer.velocity(direction), method.local_lr)
        losses.append(estimate.outer_loss)
        growths = _growths(estimate)
        # Unlike maximum, this passes over NaN as Python's max does.
        growth = torch.where(growths > growth, growths, growth)
        costs = costs + estimate.costs
    replaced = tuple(draws_with_replacement(plan, own) for own in sources)
    return CohortUpdate(point, torch.stack(losses).double().mean(0), growth, costs, replaced)


def _batched_objective(
    kernel: CohortKernel, method: MethodConfig, params: Mapping[str, Tensor]
) -> Objective[CohortBatch]:
    """Return the method's objective for models with parameters of these names."""
    estimator, plan = find_estimator(method.estimator), plan_of(method)
    if method.objective == "moreau":
        return Objective(Envelope(kernel, method), replace(plan, num_inner=0, num_hessian=0))
    if method.step_sizes == "learned":
        sizes = learned_sizes(cohort_derivatives(kernel), has_curvature=method.estimator != "first-order")
        return Objective(sizes, plan)
    if estimator.of_steps is None:
        raise ConfigError(
            f"method.estimator={method.estimator} is computed for one client at a time only. Use --engine local."
        )
    head = head_names(params, method.head) if method.adapted_part == "head" else None
    steps = scheduled(lambda size: cohort_steps(kernel, size, head), inner_sizes(method))
    return Objective(estimator.of_steps(steps, method), plan)


class Envelope:
    """Estimates λ (w - ŵ) as `nufed.common.meta.proximal.moreau_step` does; holds ŵ, which the clients may keep.

    Attributes:
        reached: ŵ of the last call, stacked; what the next one begins with if `goes_on`, else it begins with w.
    """

    def __init__(self, kernel: CohortKernel, method: MethodConfig, *, goes_on: bool = False) -> None:
        """Solve by the method's ν steps of size α."""
        self._kernel, self._method, self._goes_on = kernel, method, goes_on
        self.reached: Params = {}

    def __call__(self, params: Mapping[str, Tensor], batches: MetaBatches[CohortBatch]) -> Estimate:
        """Return the estimate on the outer batch."""
        method, batch = self._method, batches.outer
        if not (self._goes_on and self.reached):
            self.reached = {name: tensor.clone() for name, tensor in params.items()}
        sizes = inner_sizes(method)
        for step in range(method.num_inner_steps):
            held_step(self._kernel, self.reached, batch, (params, method.personal_strength), size_at(sizes, step))
        tape = self._kernel.tape(self.reached, batch, curvature=False)
        gradient = proximal_pull(params, self.reached, method.personal_strength)
        return Estimate(gradient, tape.losses(), norms(tape.gradient()), Costs(method.num_inner_steps + 1))


def held_step(
    kernel: CohortKernel,
    point: Params,
    batch: CohortBatch,
    held: tuple[Mapping[str, Tensor], float],
    step_size: float,
) -> None:
    """Take a step of f(x) + λ/2 ‖x - w‖² in the memory of `point`; `held` are w and λ."""
    anchor, strength = held
    slope = kernel.tape(point, batch, curvature=False).gradient()
    descend_in_place(point, add_scaled(slope, proximal_pull(point, anchor, strength), 1.0), step_size)


def _growths(estimate: Estimate) -> Tensor:
    """Return ‖∇F_i‖ / ‖∇f_i(w_ν)‖ of each client, [m]; 1 where the divisor is 0 or no number."""
    outer_norms = torch.as_tensor(estimate.outer_norm)
    return torch.where(outer_norms > 0, norms(estimate.gradient) / outer_norms, torch.ones_like(outer_norms))


def descend_in_place(point: Params, gradient: Stacked, step_size: float) -> None:
    """Move the cohort's own stacked parameters; new ones in each step would cost as much time as the arithmetic."""
    torch._foreach_add_(list(point.values()), [gradient[name] for name in point], alpha=-step_size)
